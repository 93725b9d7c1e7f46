"""schemas/planning/adapter.py: the config of an adapter names each layer once, as PEFT reads it."""

import pytest

from schemas.planning.adapter import adapter_config
from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec
from tests.schemas.planning.named import Named


def config(ranks, modules=None, **spec):
    model = [Named(f"{name}.weight", (64, 32)) for name in ranks]
    plan = make_plan(model, CompressionSpec(rank=1, layout="adapter", **spec), base=model)
    layers = {layer.name: (layer, ranks[layer.name]) for layer in plan.layers}
    return adapter_config(layers, modules or [tensor.name for tensor in model])


def test_alpha_is_the_rank_of_every_layer_and_r_is_the_largest():
    found = config({"a.q": 8, "a.k": 8, "b.q": 4, "b.k": 16})

    assert (found["r"], found["lora_alpha"]) == (16, 16)
    assert found["rank_pattern"] == found["alpha_pattern"] == {"a.k": 8, "a.q": 8, "b.q": 4}
    assert found["target_modules"] == ["a.k", "a.q", "b.k", "b.q"]
    assert found["base_model_name_or_path"] is None


def test_the_longer_of_two_names_comes_first_where_one_is_the_end_of_the_other():
    assert list(config({"x.q": 4, "y.x.q": 8, "z": 16})["rank_pattern"]) == ["y.x.q", "x.q"]


@pytest.mark.parametrize("other", ["y.x.q.weight", "y.x.q.inner.weight"])
def test_a_target_that_is_the_end_of_another_module_is_a_regular_expression(other):
    assert config({"x.q": 4, "z": 4}, ["x.q.weight", other])["target_modules"] == r"x\.q|z"


def test_a_name_that_is_no_plain_word_is_escaped():
    assert config({"a+b.q": 4, "z": 8})["rank_pattern"] == {r"a\+b\.q": 4}


@pytest.mark.parametrize("transposed", [[], ["a"]])
def test_transposed_weights_are_told(transposed):
    assert config({"a": 4}, transposed=transposed)["fan_in_fan_out"] is bool(transposed)
