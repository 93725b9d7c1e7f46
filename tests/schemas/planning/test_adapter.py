"""schemas/planning/adapter.py: ranks go up to the full one, and the config is what PEFT reads."""

import pytest

from schemas.planning.adapter import adapter_config
from schemas.planning.documents import plan_document
from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec
from tests.schemas.planning.differences import MODEL, planned
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


def test_a_name_that_ends_in_one_of_another_rank_has_an_entry_of_its_own():
    found = config({"x.q": 4, "y.x.q": 16, "z": 16})
    assert (found["r"], found["rank_pattern"]) == (16, {"y.x.q": 16, "x.q": 4})


@pytest.mark.parametrize("other", ["y.x.q.weight", "y.x.q.inner.weight"])
def test_a_target_that_is_the_end_of_another_module_is_a_regular_expression(other):
    assert config({"x.q": 4, "z": 4}, ["x.q.weight", other])["target_modules"] == r"x\.q|z"


def test_a_name_that_is_no_plain_word_is_escaped():
    assert config({"a+b.q": 4, "z": 8})["rank_pattern"] == {r"a\+b\.q": 4}


@pytest.mark.parametrize("transposed", [[], ["a"]])
def test_transposed_weights_are_told(transposed):
    assert config({"a": 4}, transposed=transposed)["fan_in_fan_out"] is bool(transposed)


def layer(name="h.up", **spec):
    return next(found for found in planned(**spec).layers if found.name == name)


def test_factors_get_the_names_and_shapes_that_peft_gives_them():
    stored = [(tensor.name, tensor.shape) for found in planned().layers for tensor in found.stored_tensors(4)]

    assert stored == [
        ("base_model.model.h.up.lora_A.weight", (4, 32)),
        ("base_model.model.h.up.lora_B.weight", (96, 4)),
        ("base_model.model.h.down.lora_A.weight", (4, 96)),
        ("base_model.model.h.down.lora_B.weight", (32, 4)),
    ]


def test_factors_of_a_transposed_weight_are_not_transposed():
    found = layer("h.up", transposed=["h.up"])

    assert (found.rows, found.columns, found.shape) == (32, 96, (96, 32))
    assert [tensor.shape for tensor in found.stored_tensors(4)] == [(4, 96), (32, 4)]


@pytest.mark.parametrize(
    ("rank", "options", "expected"),
    [
        (24, {}, 24),  # the break-even rank is 23
        (32, {}, 32),
        (500, {}, 32),
        (5, {"align": 8}, 8),
        (30, {"align": 20}, 32),
        (4, {"min_rank": 64}, 32),
        ({"ratio": 0.5}, {}, 12),
        ({"ratio": 1.0}, {"align": 8}, 24),
        ({"ratio": 0.01}, {}, "rank_zero"),
    ],
)
def test_a_rank_goes_up_to_the_full_one_whatever_align_says(rank, options, expected):
    found = layer(rank=500, overrides=[{"match": "h.up", "rank": rank, **options}])

    assert (found.reason or found.rank) == expected


def test_the_dense_layout_keeps_the_rule_that_factors_must_save():
    found = layer(rank=24, layout="dense")

    assert (found.rank, found.reason, found.largest_rank) == (None, "no_saving", 23)
    assert [tensor.name for tensor in found.stored_tensors(4)] == ["h.up.weight"]


def test_a_plan_counts_the_adapter_against_the_whole_checkpoint():
    totals = plan_document("m", planned(overrides=[{"match": "*.down", "rank": {"ratio": 0.01}}])).totals

    assert totals.parameters_before == sum(tensor.parameters for tensor in MODEL)
    assert (totals.parameters_after, totals.bytes_after) == (4 * 128, 4 * 4 * 128)
    assert (totals.layers_factored, totals.layers_kept) == (1, 1)


def test_an_open_rank_is_bounded_by_the_full_one():
    document = plan_document("m", planned(rank={"energy": 0.9}, align=20))

    bounds = document.layers[0].rank_bounds
    assert (bounds.least, bounds.most) == (20, 32)
    assert document.layers[0].parameters_after == 32 * 128
    assert plan_document("m", planned(rank={"budget": 0.1})).totals.parameters_after == 614


@pytest.mark.parametrize("method", [{"method": "cx"}, {"method": "cur", "cur": {"storage": "two"}}])
def test_other_forms_of_two_factors_make_an_adapter(method):
    assert all(found.rank == 4 for found in planned(**method).layers)
