"""Each decoder gives, bit for bit, what the library gives that defines the encoding."""

import pytest
import torch
from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import worker.encodings.base
from schemas.format.encodings import find_weights, read_quantization
from schemas.format.tensor import TensorInfo
from tests.layouts import (
    LAYOUTS,
    block_fp8,
    compressed_tensors,
    fp8_block_layout,
    fp8_channel_layout,
    fp8_tensor_layout,
    int4_layout,
    mxfp4,
    nvfp4_divided_layout,
    nvfp4_multiplied_layout,
    scheme_of,
)
from worker.checkpoint.reader import dtype_name
from worker.encodings import DECODERS, decode


def decoded(parts, entry):
    """Decode the weight that is stored as these tensors below one module."""
    tensors = [
        TensorInfo(f"m.{last}", dtype_name(part.dtype), tuple(part.shape), 0, part.nbytes)
        for last, part in parts.items()
    ]
    (weight,) = find_weights(tensors, read_quantization({"quantization_config": entry})).encoded
    named = {role: parts[name.removeprefix("m.")] for role, name in weight.encoded.names("m").items()}
    found = decode(weight.encoded, named)
    assert tuple(found.shape) == weight.shape
    assert weight.encoded.encoding in DECODERS
    return found


def same_bits(found, expected):
    return found.dtype == expected.dtype and torch.equal(
        found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float8_e8m0fnu])
def test_blocks_of_fp8_are_those_of_transformers(gaussian, dtype):
    parts, entry = fp8_block_layout(gaussian(48, 80) * 3, (16, 16))
    scale = parts["weight_scale_inv"]
    parts["weight_scale_inv"] = (
        torch.arange(100, 115, dtype=torch.uint8).reshape(scale.shape).view(dtype)
        if dtype.itemsize == 1
        else scale.to(dtype)
    )
    expected = Fp8Dequantize(None)._dequantize_one(
        parts["weight"], parts["weight_scale_inv"], output_dtype=torch.float32
    )
    assert same_bits(decoded(parts, entry), expected)


def test_the_last_blocks_may_be_partial(gaussian):
    parts, entry = fp8_block_layout(gaussian(40, 70), (16, 32))
    assert parts["weight_scale_inv"].shape == (3, 3)
    padded = torch.zeros(48, 96, dtype=torch.float8_e4m3fn)
    padded[:40, :70] = parts["weight"]
    expected = Fp8Dequantize(None)._dequantize_one(
        padded, parts["weight_scale_inv"], output_dtype=torch.float32
    )
    assert same_bits(decoded(parts, entry), expected[:40, :70])


@pytest.mark.parametrize("layout", [fp8_channel_layout, fp8_tensor_layout])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scaled_fp8_is_that_of_compressed_tensors(gaussian, layout, dtype):
    parts, entry = layout(gaussian(48, 80))
    parts["weight_scale"] = parts["weight_scale"].to(dtype)
    state = {"weight": parts["weight"], "weight_scale": parts["weight_scale"]}
    expected = FloatQuantizationCompressor.decompress(state, scheme_of(entry))["weight"]
    assert same_bits(decoded(parts, entry), expected)


def test_blocks_of_compressed_tensors_are_its_own(gaussian):
    values, scale = block_fp8(gaussian(40, 70), (16, 32))
    entry = compressed_tensors(
        "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[16, 32]
    )
    parts = {"weight": values, "weight_scale": scale.to(torch.bfloat16)}
    expected = FloatQuantizationCompressor.decompress(parts, scheme_of(entry))["weight"]
    assert same_bits(decoded(parts, entry), expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_integers_are_those_of_compressed_tensors(gaussian, symmetric, bits, dtype):
    parts, entry = int4_layout(gaussian(40, 96), symmetric=symmetric, bits=bits)
    parts["weight_scale"] = parts["weight_scale"].to(dtype)
    expected = PackedQuantizationCompressor.decompress(parts, scheme_of(entry))["weight"]
    assert same_bits(decoded(parts, entry), expected)


def test_columns_may_belong_to_groups_out_of_order(gaussian):
    parts, entry = int4_layout(gaussian(8, 64))
    order = torch.arange(64).reshape(4, 16).mT.flatten()  # 0, 16, 32, …
    group_of = torch.argsort(order) // 16
    plain = decoded(parts, entry)
    # The same integers, each in the group that the index says.
    moved = {**parts, "weight_g_idx": group_of.to(torch.int32)}
    scale = parts["weight_scale"]
    integers = (plain.float() / scale.float().repeat_interleave(16, 1)).round().to(torch.bfloat16)
    assert torch.equal(decoded(moved, entry), integers * scale[:, group_of])
    unused = {**parts, "weight_g_idx": torch.full((64,), -1, dtype=torch.int32)}
    assert same_bits(decoded(unused, entry), plain)


def test_nvfp4_is_divided_by_its_second_scale_as_in_compressed_tensors(gaussian):
    parts, entry = nvfp4_divided_layout(gaussian(24, 64) * 3)
    expected = NVFP4PackedCompressor.decompress(dict(parts), scheme_of(entry))["weight"]
    assert same_bits(decoded(parts, entry), expected)


def test_nvfp4_of_modelopt_is_multiplied(gaussian):
    parts, entry = nvfp4_multiplied_layout(gaussian(24, 64) * 3)
    found = decoded(parts, entry)
    scale = parts["weight_scale"].float() * parts["weight_scale_2"]
    codes = unpack_fp4_from_uint8(parts["weight"], 24, 64, dtype=torch.float32)
    assert same_bits(found, (codes.unflatten(1, (-1, 16)) * scale.unsqueeze(-1)).flatten(1))
    # The other convention with the reciprocal of a power of two says the same, up to its rounding.
    parts["weight_scale_2"] = torch.tensor(2.0**-7)
    other, other_entry = nvfp4_divided_layout(torch.ones(24, 64))
    other |= {
        "weight_packed": parts["weight"],
        "weight_scale": parts["weight_scale"],
        "weight_global_scale": torch.tensor([2.0**7]),
    }
    assert same_bits(decoded(other, other_entry), decoded(parts, entry).to(torch.bfloat16))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_decoded_weight_is_close_to_what_was_encoded(gaussian, layout):
    weight = gaussian(32, 64).to(torch.bfloat16).float()
    parts, entry = LAYOUTS[layout](weight)
    error = torch.linalg.norm(decoded(parts, entry).float() - weight) / torch.linalg.norm(weight)
    assert error < (0.03 if layout in {"fp8_block", "fp8_channel", "fp8_tensor", "comfy"} else 0.11)


def test_blocks_of_rows_change_nothing(gaussian, monkeypatch):
    cases = [LAYOUTS[name](gaussian(40, 64)) for name in ("int4", "nvfp4_divided", "nvfp4_multiplied")]
    whole = [decoded(*case) for case in cases]
    monkeypatch.setattr(worker.encodings.base, "BLOCK_ELEMENTS", 7 * 64)
    assert all(same_bits(decoded(*case), one) for case, one in zip(cases, whole, strict=True))


def test_the_experts_of_gpt_oss_are_those_of_transformers(gaussian):
    blocks, scales = mxfp4(gaussian(3, 64, 40))
    expected = convert_moe_packed_tensors(blocks, scales)
    tensors, at = [], 0
    for last, part in (("blocks", blocks), ("scales", scales)):
        name = f"layers.0.mlp.experts.gate_up_proj_{last}"
        tensors.append(TensorInfo(name, "U8", tuple(part.shape), at, at + part.nbytes))
        at += part.nbytes
    experts = find_weights(
        tensors, read_quantization({"quantization_config": {"quant_method": "mxfp4"}})
    ).encoded
    assert [weight.name for weight in experts] == [
        f"layers.0.mlp.experts.gate_up_proj.{number}.weight" for number in range(3)
    ]
    assert sum(weight.nbytes for weight in experts) == blocks.nbytes + scales.nbytes
    for number, weight in enumerate(experts):
        found = decode(weight.encoded, {"values": blocks[number], "scale": scales[number]})
        assert weight.shape == (64, 40)
        assert same_bits(found, expected[number])
    assert not find_weights(tensors, read_quantization({})).encoded
