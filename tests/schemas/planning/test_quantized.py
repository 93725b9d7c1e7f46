"""schemas/planning/forms/quantized and codecs: names, shapes, dtypes and bytes of quantised layers."""

import math

import pytest

from schemas.format.tensor import TensorInfo
from schemas.planning.forms import Quantizer
from schemas.planning.output import describe_factored
from schemas.planning.planner import make_plan
from schemas.problem import SpecError
from schemas.spec import CompressionSpec


def planned(shape, spec, dtype="F32", others=()):
    """Plan one weight `a.weight` of this shape."""
    names = ("a.weight", *others)
    tensors = [TensorInfo(name, dtype, shape if name == "a.weight" else shape[:1], 0, 0) for name in names]
    return make_plan(tensors, CompressionSpec.model_validate(spec)).layers[0]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
@pytest.mark.parametrize(("bits", "group"), [(4, 64), (4, 128), (3, 64), (3, 32)])
def test_packed_weights_have_the_tensors_of_pack_quantized(dtype, bits, group):
    layer = planned((10, 384), {"method": f"int{bits}", "group": group}, dtype)

    scale = "F32" if dtype == "F64" else dtype
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in layer.stored_tensors(0)] == [
        ("a.weight_packed", "I32", (10, 384 * bits // 32)),
        ("a.weight_scale", scale, (10, 384 // group)),
        ("a.weight_shape", "I64", (2,)),
    ]
    assert (layer.rank, layer.reason, layer.form.quantizer) == (0, None, Quantizer(bits, group))
    assert layer.parameters_after(0) == 3840
    assert layer.bytes_after(0) == 3840 * bits // 8 + layer.stored_tensors(0)[1].nbytes + 16


@pytest.mark.parametrize("transposed", [False, True])
def test_a_corrected_weight_has_the_integers_and_both_factors(transposed):
    shape = (64, 32) if transposed else (32, 64)
    spec = {"method": "int8+svd", "rank": 4, "dtype": "int8", "transposed": ["a"] * transposed}
    layer = planned(shape, spec, "F16")

    turned = slice(None, None, -1 if transposed else 1)
    right, left = (4, 64)[turned], (32, 4)[turned]
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in layer.stored_tensors(4)] == [
        ("a.weight", "I8", (32, 64)),
        ("a.weight_scale", "F16", (32, 1)),
        ("a.0.weight", "I8", right),
        ("a.0.weight_scale", "F16", (right[0], 1)),
        ("a.1.weight", "I8", left),
        ("a.1.weight_scale", "F16", (left[0], 1)),
    ]
    assert layer.parameters_after(4) == 32 * 64 + 4 * 96
    assert layer.bias_name == "a.bias"
    described = describe_factored(layer, 4, None).model_dump(exclude_none=True)
    assert {"transposed": transposed, **described} == {
        "method": "int8+svd",
        "rank": 4,
        "shape": shape,
        "dtype": "F16",
        "codec": "int8",
        "bits": 8,
        "transposed": transposed,
    }


def test_a_file_says_how_its_integers_are_packed():
    layer = planned((32, 64), {"method": "int4", "group": 32, "dtype": "int8"})

    assert describe_factored(layer, 0, 0.25).model_dump() == {
        "method": "int4",
        "rank": 0,
        "shape": (32, 64),
        "dtype": "F32",
        "relative_error": 0.25,
        "bits": 4,
        "group": 32,
    }


@pytest.mark.parametrize("method", ["int8+svd", "int4+svd", "int3+svd"])
@pytest.mark.parametrize("dtype", ["keep", "int8", "float16"])
@pytest.mark.parametrize("weight", ["F32", "BF16"])
@pytest.mark.parametrize("shape", [(384, 384), (1536, 384), (64, 128)])
def test_break_even_saves_bytes_and_the_next_rank_none(method, dtype, weight, shape):
    layer = planned(shape, {"method": method, "rank": 1, "dtype": dtype}, weight)

    most = math.prod(shape) // sum(shape)
    assert layer.bytes_after(layer.break_even_rank) < layer.bytes_before
    assert (
        layer.break_even_rank >= most - 1
        or layer.bytes_after(layer.break_even_rank + 1) >= layer.bytes_before
    )
    assert layer.ranks == range(1, layer.break_even_rank + 1)
    aligned = planned(shape, {"method": method, "rank": 1, "dtype": dtype, "align": 8, "min_rank": 3}, weight)
    assert all(rank % 8 == 0 and 3 <= rank <= layer.break_even_rank for rank in aligned.ranks)


@pytest.mark.parametrize(
    ("shape", "spec", "rank", "reason"),
    [
        ((10, 65), {"method": "int4"}, None, "group"),
        ((10, 96), {"method": "int4"}, None, "group"),
        ((10, 96), {"method": "int4", "group": 32}, 0, None),
        ((10, 65), {"method": "int8"}, 0, None),
        ((10, 1), {"method": "int8"}, None, "no_saving"),  # the scale is as large as the row
        ((96, 10), {"method": "int3", "group": 32, "transposed": ["a"]}, 0, None),
        ((96, 128), {"method": "int4+svd", "rank": {"ratio": 0.5}}, 27, None),
        ((96, 128), {"method": "int4+svd", "rank": {"ratio": 0.5}, "align": 8}, 24, None),
        ((96, 128), {"method": "int4+svd", "rank": {"ratio": 0.01}}, None, "rank_zero"),
        ((96, 128), {"method": "int4+svd", "rank": 60}, None, "no_saving"),
        ((96, 128), {"method": "int4", "rank": 60, "min_rank": 8, "align": 16}, 0, None),
        ((96, 128), {"method": "int4", "layout": "dense"}, 0, None),
    ],
)
def test_ranks_and_reasons_follow_from_shape_and_spec(shape, spec, rank, reason):
    layer = planned(shape, spec)

    assert (layer.rank, layer.reason) == (rank, reason)


def test_names_of_scales_must_be_free():
    taken = planned((32, 64), {"method": "int8"}, others=("a.bias", "a.weight_scale"))

    assert taken.reason == "names_taken"
    assert planned((32, 64), {"method": "int8"}, others=("a.bias",)).reason is None


def test_an_adapter_cannot_hold_integers():
    tensor = TensorInfo("a.weight", "F32", (32, 64), 0, 0)
    spec = CompressionSpec.model_validate({"method": "int8", "layout": "adapter", "base": "b"})

    with pytest.raises(SpecError, match="An adapter has two factors for each layer, but int8 stores others"):
        make_plan([tensor], spec, base=[tensor])
