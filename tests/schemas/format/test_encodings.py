"""Quantized weights are found by names, shapes and config.json, and never guessed."""

import pytest

from schemas.format.encodings import find_weights, read_quantization
from schemas.format.tensor import DTYPE_BITS, TensorInfo

FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
BLOCK = {"weight": ("F8_E4M3", (576, 256)), "weight_scale_inv": ("F32", (5, 2))}


def tensors(below, module="model.layers.0.mlp.up_proj"):
    found, at = [], 0
    for last, (dtype, shape) in below.items():
        size = DTYPE_BITS[dtype] // 8
        for side in shape:
            size *= side
        found.append(TensorInfo(f"{module}.{last}", dtype, shape, at, at + size))
        at += size
    return found


def find(below, config, metadata=()):
    return find_weights(tensors(below), read_quantization(config, metadata))


def test_a_weight_takes_the_place_of_its_values():
    others = tensors({"weight": ("BF16", (64,))}, module="model.norm")
    given = [*others, *tensors({**BLOCK, "bias": ("BF16", (576,)), "input_scale": ("F32", ())})]
    planned = find_weights(given, read_quantization(FP8))
    assert [tensor.name.removeprefix("model.layers.0.mlp.") for tensor in planned.tensors] == [
        "model.norm.weight",
        "up_proj.weight",
        "up_proj.bias",
    ]
    (weight,) = planned.encoded
    assert (weight.dtype, weight.shape, weight.encoded.encoding) == ("BF16", (576, 256), "fp8_block")
    assert weight.encoded.tile == (128, 128)
    # The scales of the inputs go with it.
    assert weight.nbytes == 576 * 256 + 4 * 10 + 4
    assert weight.parameters == 576 * 256


def compressed(form, **weights):
    group = {"targets": ["Linear"], "weights": weights}
    entry = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return {"quantization_config": entry}


FLOAT8 = compressed("float-quantized", num_bits=8, type="float", strategy="channel")
INT4 = compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=64)
SKEWED = compressed("pack-quantized", num_bits=4, type="int", group_size=64, symmetric=False)
BY_ROW = compressed("pack-quantized", num_bits=4, type="int", strategy="channel")
FLOAT4 = compressed("nvfp4-pack-quantized", num_bits=4, type="float", group_size=16)
MODELOPT = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
ROWS = {"weight": BLOCK["weight"], "weight_scale": ("BF16", (576, 1))}
WHOLE = {"weight": BLOCK["weight"], "weight_scale": ("F32", (1,))}
COMFY = {"weight": BLOCK["weight"], "scale_weight": ("F32", ())}
WORDS = {
    "weight_packed": ("I32", (576, 32)),
    "weight_scale": ("BF16", (576, 4)),
    "weight_shape": ("I64", (2,)),
}
ZEROS = {**WORDS, "weight_zero_point": ("I32", (72, 4))}
PAIRS = {"weight_packed": ("U8", (576, 128)), "weight_scale": ("F8_E4M3", (576, 16))}
DIVIDED = {**PAIRS, "weight_global_scale": ("F32", (1,))}
MULTIPLIED = {"weight": PAIRS["weight_packed"], "weight_scale": PAIRS["weight_scale"]} | {
    "weight_scale_2": ("F32", ())
}

FOUND = {
    "rows": (ROWS, FLOAT8, "fp8_scaled", (1, 256)),
    "one for all": (
        WHOLE,
        compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
        "fp8_scaled",
        (576, 256),
    ),
    "a diffusion model": (COMFY, {}, "fp8_scaled", (576, 256)),
    "a diffusion model, lately": (
        {**WHOLE, "comfy_quant": ("U8", (30,))},
        {},
        "fp8_scaled",
        (576, 256),
    ),
    "ModelOpt": (
        WHOLE,
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
        "fp8_scaled",
        (576, 256),
    ),
    "words": (WORDS, INT4, "packed", (1, 64)),
    "words of rows": ({**WORDS, "weight_scale": ("F16", (576, 1))}, BY_ROW, "packed", (1, 256)),
    "words with zero points": (ZEROS, SKEWED, "packed", (1, 64)),
    "words out of order": ({**WORDS, "weight_g_idx": ("I32", (256,))}, INT4, "packed", (1, 64)),
    "NVFP4, divided": (DIVIDED, FLOAT4, "nvfp4_divided", (1, 16)),
    "NVFP4, multiplied": (MULTIPLIED, MODELOPT, "nvfp4_multiplied", (1, 16)),
    "blocks": (BLOCK, FP8, "fp8_block", (128, 128)),
    "of a text model": (BLOCK, {"text_config": FP8}, "fp8_block", (128, 128)),
    "powers of two": (
        {"weight": BLOCK["weight"], "scale": ("F8_E8M0", (5, 2))},
        FP8,
        "fp8_block",
        (128, 128),
    ),
    "one scale": (
        {"weight": BLOCK["weight"], "weight_scale_inv": ("F32", ())},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": None}},
        "fp8_block",
        (576, 256),
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_is_certain_is_found(case):
    below, config, encoding, tile = FOUND[case]
    (weight,) = find(below, config).encoded
    assert (weight.encoded.encoding, weight.encoded.tile) == (encoding, tile)


UNKNOWN = {
    "rows, no config": (ROWS, {}),
    "one for all, no config": (WHOLE, {}),
    "rows of a scheme for all": (
        ROWS,
        compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
    ),
    "rows of a diffusion model": ({**COMFY, "scale_weight": ("F32", (576, 1))}, {}),
    "words, no config": (WORDS, {}),
    "words of another group": (WORDS, compressed("pack-quantized", num_bits=4, type="int", group_size=32)),
    "words of other bits": (WORDS, compressed("pack-quantized", num_bits=8, type="int", group_size=64)),
    "words without zero points": (WORDS, SKEWED),
    "words with zero points too many": (ZEROS, INT4),
    "NVFP4, no config": (DIVIDED, {}),
    "NVFP4 of ModelOpt, no config": (MULTIPLIED, {}),
    "NVFP4 of ModelOpt under another method": (MULTIPLIED, FLOAT4),
    "AWQ of ModelOpt": ({**MULTIPLIED, "pre_quant_scale": ("BF16", (256,))}, MODELOPT),
    "bytes alone": ({"weight": ("U8", (576, 128))}, MODELOPT),
    "no config": (BLOCK, {}),
    "another method": (BLOCK, {"quantization_config": {"quant_method": "gptq"}}),
    "another block": (
        BLOCK,
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 128]}},
    ),
    "no block": (BLOCK, {"quantization_config": {"quant_method": "fp8"}}),
    "a block that is none": (
        BLOCK,
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 0]}},
    ),
    "two scales": ({**BLOCK, "scale": ("F32", (5, 2))}, FP8),
    "a mask": ({**BLOCK, "mask": ("BOOL", (576, 256))}, FP8),
    "no scale": ({"weight": BLOCK["weight"]}, FP8),
    "a transposed scale": ({**BLOCK, "weight_scale_inv": ("F32", (2, 5))}, FP8),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_ambiguous_is_left_as_it_is_and_named(case):
    below, config = UNKNOWN[case]
    planned = find(below, config)
    assert list(planned.tensors) == tensors(below)
    assert planned.unknown == {tensors(below)[0].name}


def test_modules_that_an_earlier_job_has_rounded_are_left_alone():
    planned = find_weights(tensors(BLOCK), read_quantization(FP8), leave={"model.layers.0.mlp.up_proj"})
    assert not planned.encoded
    assert not planned.unknown


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": []},
        {"quantization_config": {"quant_method": 3, "config_groups": [1]}},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": 1}}},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": ["a", None]}},
    ],
)
def test_a_config_of_another_shape_says_nothing(config):
    assert not find(BLOCK, config, [{"_quantization_metadata": "{"}]).encoded
