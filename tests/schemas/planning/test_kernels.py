"""schemas/planning/kernels.py and what selects convolutions: a table of weights, and each warning."""

import pytest
from pydantic import ValidationError

from schemas.planning.cost import ParameterCost
from schemas.planning.documents import plan_document
from schemas.spec import CompressionSpec
from tests.schemas.planning.named import Named, planned, reasons
from tests.schemas.planning.test_calibration import planned as calibrated

CONV = Named("conv.weight", (64, 32, 3, 3))


def forms(*tensors, **spec):
    """Return the form of each selected layer that is to be factored."""
    return {layer.name: layer.form.name for layer in planned(tensors, **spec).layers if layer.reason is None}


@pytest.mark.parametrize(
    ("tensors", "spec", "expected"),
    [
        ((CONV,), {}, {}),
        ((CONV,), {"conv": "channel"}, {"conv": "channel"}),
        ((CONV, Named("fc.weight")), {"conv": "spatial"}, {"conv": "spatial", "fc": "svd"}),
        ((CONV,), {"conv": "cp", "exclude": ["conv"]}, {}),
        ((Named("a.weight", (64, 32, 3)),), {"conv": "tucker2"}, {"a": "tucker2"}),
        ((Named("a.weight", (64, 32, 3, 3, 3)),), {"conv": "separable", "rank": 2}, {"a": "separable"}),
        # An override names a form, or another one.
        ((CONV,), {"overrides": [{"match": "conv", "conv": "cp"}]}, {"conv": "cp"}),
        ((CONV,), {"conv": "cp", "overrides": [{"match": "c*", "conv": "spatial"}]}, {"conv": "spatial"}),
        ((CONV,), {"conv": "cp", "overrides": [{"match": "c*", "method": "cx"}]}, {"conv": "cp"}),
        ((Named("fc.weight"),), {"overrides": [{"match": "fc", "conv": "cp"}]}, {"fc": "svd"}),
        # Stacks of experts are no convolutions, unless an override says so.
        ((Named("e.weight", (8, 64, 64)),), {"conv": "channel"}, {}),
        (
            (Named("e.weight", (8, 64, 64)),),
            {"overrides": [{"match": "e", "conv": "channel"}]},
            {"e": "channel"},
        ),
        # A kernel of one element is a matrix.
        ((Named("a.weight", (64, 32, 1, 1)),), {"conv": "tucker2"}, {"a": "channel"}),
    ],
)
def test_conv_selects_convolutions_and_nothing_else(tensors, spec, expected):
    assert forms(*tensors, **spec) == expected


@pytest.mark.parametrize(
    ("tensor", "spec", "reason"),
    [
        (Named("a.weight", (64, 1, 3, 3)), {"conv": "channel"}, "depthwise"),
        (Named("a.weight", (64, 1, 9, 9)), {"overrides": [{"match": "a", "conv": "channel"}]}, None),
        (Named("a.weight", (64, 32, 3, 3, 3)), {"conv": "spatial"}, "kernel_sides"),
        (CONV, {"conv": "cp", "transposed": ["conv"]}, "transposed_kernel"),
        (CONV, {"conv": "separable", "transposed": ["conv"]}, "transposed_kernel"),
        (CONV, {"conv": "tucker2", "transposed": ["conv"]}, None),
        (CONV, {"conv": "channel", "rank": 60}, "no_saving"),
        (CONV, {"conv": "channel", "rank": {"ratio": 0.001}}, "rank_zero"),
    ],
)
def test_a_convolution_that_stays_dense_has_a_reason(tensor, spec, reason):
    assert list(reasons(tensor, **spec).values()) == [reason]


def test_depthwise_kernels_are_no_part_of_a_budget():
    depthwise = Named("depthwise.weight", (64, 1, 3, 3))
    layers = planned((CONV, depthwise), conv="channel").layers

    assert ParameterCost(layers, 0.5).limit == CONV.parameters // 2


@pytest.mark.parametrize(
    ("bias", "transposed"), [(64, False), (32, True), (128, False)], ids=["outputs", "inputs", "neither"]
)
def test_a_bias_tells_a_transposed_convolution(bias, transposed):
    plan = planned([CONV, Named("conv.bias", (bias,))], conv="channel")

    layer = plan.layers[0]
    assert layer.transposed is transposed
    assert (layer.rows, layer.columns) == ((32, 64 * 9) if transposed else (64, 32 * 9))
    assert layer.shape == CONV.shape
    assert any("taken as stored [inputs, outputs]" in warning for warning in plan.warnings) is transposed
    stored = {tensor.name: tensor.shape for tensor in layer.stored_tensors(4)}
    first, last = ((64, 4), (4, 32)) if transposed else ((4, 32), (64, 4))
    assert stored == {"conv.0.weight": (*first, 3, 3), "conv.1.weight": (*last, 1, 1)}


@pytest.mark.parametrize(
    ("spec", "warning"),
    [
        ({"conv": "channel", "include": ["fc"]}, "conv: no convolution is selected"),
        ({"conv": "channel", "dtype": "int8"}, "dtype: factors of convolutions keep the dtype"),
    ],
)
def test_what_has_no_effect_on_convolutions_is_told(spec, warning):
    tensors = [CONV, Named("fc.weight")]

    assert any(text.startswith(warning) for text in planned(tensors, **spec).warnings)
    assert not any(text.startswith(warning) for text in planned(tensors, conv="channel").warnings)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"rank": 4, "conv": "svd"}, "conv"),
        ({"rank": 4, "conv": "channel", "layout": "adapter"}, "layout"),
        ({"rank": 4, "layout": "adapter", "overrides": [{"match": "*", "conv": "cp"}]}, "layout"),
        ({"method": "int8", "conv": "channel"}, "rank"),
        ({"method": "int8", "overrides": [{"match": "*", "conv": "cp"}]}, "overrides"),
        ({"rank": 4, "method": "channel"}, "method"),
    ],
)
def test_a_spec_that_cannot_work_is_refused_with_its_field(spec, field):
    with pytest.raises(ValidationError) as refused:
        CompressionSpec.model_validate(spec)
    assert refused.value.errors()[0]["loc"][0] == field


def test_the_document_counts_the_parameters_of_the_factors():
    tensors = [CONV, Named("fc.weight")]

    document = plan_document("m", planned(tensors, conv="channel", rank=4))

    conv, linear = document.layers
    assert (conv.method, conv.parameters_after) == ("channel", 4 * (64 + 32 * 9))
    assert conv.break_even_rank == (64 * 32 * 9 - 1) // (64 + 32 * 9)
    assert document.totals.parameters_after == conv.parameters_after + linear.parameters_after


def test_only_channel_takes_statistics(monkeypatch):
    kernel = Named("h.0.k.weight", (40, 8, 3, 3))
    monkeypatch.setattr("tests.schemas.planning.test_calibration.MODEL", (kernel,))
    gram = Named("h.0.k.gram", (72, 72))

    assert [layer.calibrated for layer in calibrated(gram, conv="channel", transposed=[]).layers] == [True]
    for spec in ({"conv": "spatial"}, {"conv": "channel", "transposed": ["h.0.k"]}):
        plan = calibrated(gram, **{"transposed": []} | spec)
        assert [layer.calibrated for layer in plan.layers] == [False]
        assert any("not used, since" in warning for warning in plan.warnings)
