"""schemas/planning/left_out.py: what a plan leaves out, by rule and share, and the warning about it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from schemas.planning.documents import plan_document
from schemas.planning.left_out import not_selected
from schemas.report import NOT_LINEAR, NOT_SELECTED
from tests.schemas.planning.named import Named, planned


def rules(*tensors, **options):
    """Return how many tensors each rule leaves out."""
    return {entry.rule: entry.tensors for entry in not_selected(planned(tensors, **options))}


@pytest.mark.parametrize(
    ("tensor", "rule"),
    [
        (Named("a.bias", (64,)), "vector"),
        (Named("scale", ()), "vector"),
        (Named("a.weight", (64, 64), "F8_E4M3"), "dtype"),
        (Named("a.weight_packed", (64, 64), "I32"), "dtype"),
        (Named("conv.weight", (64, 32, 3, 3)), "convolution"),
        (Named("conv.weight", (64, 32, 3)), "convolution"),
        (Named("experts.weight", (8, 64, 64)), "stack"),
        (Named("experts.gate_up_proj", (8, 64, 64)), "stack"),
        (Named("weight"), "no_module"),
        (Named("attn.in_proj_weight"), "in_projection"),
        (Named("attn.k_proj_weight"), "in_projection"),
        (Named("lstm.weight_ih_l0"), "recurrent"),
        (Named("lstm.weight_hh_l1_reverse"), "recurrent"),
        (Named("fc.weight_v"), "reparametrized"),
        (Named("block/dense/weight"), "other_name"),
        (Named("attn.mask", (1, 1, 64, 64)), "other_name"),
        (Named("table"), "other_name"),
        (Named("model.embed.weight"), "exclude last:embed*"),
    ],
)
def test_every_tensor_that_is_not_selected_has_a_rule(tensor, rule):
    assert rules(tensor) == {rule: 1}
    assert rule in NOT_SELECTED or rule.startswith("exclude ")


def test_a_bias_tells_a_long_kernel_from_stacked_experts():
    kernel = Named("conv.weight", (64, 32, 128))

    assert rules(kernel, Named("conv.bias", (64,))) == {"convolution": 1, "vector": 1}
    assert rules(kernel, Named("conv.bias", (64, 32))) == {"stack": 1, "other_name": 1}


def test_patterns_of_the_user_are_rules_too():
    tensors = [Named("a.weight"), Named("b.c.weight"), Named("d.weight")]

    assert rules(*tensors, include=["a", "b.*"], exclude=["*.c"]) == {"exclude *.c": 1, "include": 1}


def test_factors_of_an_earlier_job_are_left_out_as_such():
    from schemas.planning.planner import make_plan
    from schemas.spec import CompressionSpec

    tensors = [Named("a.0.weight", (4, 64)), Named("a.1.weight", (64, 4)), Named("b.weight")]
    plan = make_plan(tensors, CompressionSpec(rank=1), factored={"a"})

    assert {entry.rule: entry.tensors for entry in not_selected(plan)} == {"factored_before": 2}


def test_shares_and_layers_add_up_to_the_checkpoint_and_names_are_the_first_five():
    tensors = [Named(f"e.{number}.weight", (4, 64, 64)) for number in range(7)]
    tensors += [Named("a.weight"), Named("a.scale"), Named("b.weight"), Named("b.bias", (64,))]
    document = plan_document("m", planned(tensors))
    shown = {entry.rule: entry for entry in document.not_selected}

    assert shown["stack"].names == tuple(f"e.{number}.weight" for number in range(5))
    assert (shown["stack"].tensors, shown["stack"].parameters) == (7, 7 * 4 * 64 * 64)
    assert shown["more_than_a_linear"].names == ("a.weight",)
    linear = sum(layer.parameters_before for layer in document.layers if layer.reason not in NOT_LINEAR)
    assert linear + sum(entry.parameters for entry in document.not_selected) == (
        document.totals.parameters_before
    )
    assert sum(entry.share for entry in document.not_selected) == pytest.approx(
        1 - linear / document.totals.parameters_before
    )
    sizes = [entry.parameters for entry in document.not_selected]
    assert sizes == sorted(sizes, reverse=True)


def test_leaving_out_most_of_a_checkpoint_is_a_warning_that_names_the_largest_rule():
    large, small = Named("embed.weight", (80, 64)), Named("wpe.weight", (10, 64))

    (warning,) = planned([large, small, Named("fc.weight")]).warnings
    assert warning.startswith(
        "58.4% of all parameters are not selected; the largest rule, 'exclude last:embed*', "
    )
    assert warning.endswith("leaves out 51.9%, such as embed.weight")
    assert planned([small, Named("fc.weight")]).warnings == ()


def test_where_nothing_is_selected_the_warning_says_what_is_there_and_why_it_is_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(32, 32)
            self.attn = nn.MultiheadAttention(32, 4)
            self.fc = parametrizations.weight_norm(nn.Linear(32, 32))
            self.experts = nn.Parameter(torch.zeros(2, 32, 32))

    tensors = [Named(name, tuple(tensor.shape)) for name, tensor in Net().state_dict().items()]
    (warning,) = planned([*tensors, Named("weight", (32, 32))], exclude=["*out_proj"]).warnings

    assert warning.startswith("no layer is selected: the output equals the input; ")
    for words in (
        "recurrent: lstm.weight_ih_l0 and 1 more (the weight of a recurrent layer",
        "in_projection: attn.in_proj_weight",
        "reparametrized: fc.parametrizations.weight.original0 and 1 more",
        "stack: experts",
        "no_module: weight (the name is `weight` alone",
        "exclude *out_proj: attn.out_proj.weight",
    ):
        assert words in warning
