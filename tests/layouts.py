"""Small models in the layouts that quantized checkpoints are published in, written without our code."""

import json
import math

import torch
from safetensors.torch import load_file, save_file

PROJECTION = "_proj"


def is_projection(name):
    return name.endswith("_proj.weight")


def fp8(values):
    return values.to(torch.float8_e4m3fn)


def block_fp8(weight, block):
    """Return a matrix as DeepSeek publishes it: values of eight bits, and their scales."""
    rows, columns = block
    grid = math.ceil(weight.shape[0] / rows), math.ceil(weight.shape[1] / columns)
    scale, values = torch.empty(grid), torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(grid[0]):
        for j in range(grid[1]):
            at = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            tile = weight[at].float()
            scale[i, j] = tile.abs().max() / 448
            values[at] = fp8(tile / scale[i, j])
    return values, scale


def quantize_folder(source, target, layout, which=is_projection):
    """Write a model's folder with some weights in a layout, which returns tensors and a config."""
    target.mkdir()
    tensors, metadata, entry = {}, {"format": "pt"}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not which(name):
            tensors[name] = tensor
            continue
        module = name.removesuffix(".weight")
        stored, entry = layout(tensor)
        tensors |= {f"{module}.{last}": part.contiguous() for last, part in stored.items()}
    save_file(tensors, target / "model.safetensors", metadata=metadata)
    config = json.loads((source / "config.json").read_bytes())
    config["quantization_config"] = entry
    (target / "config.json").write_text(json.dumps(config))
    return target


def fp8_block_layout(weight, block=(16, 16)):
    values, scale = block_fp8(weight, block)
    entry = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    return {"weight": values, "weight_scale_inv": scale}, entry


def compressed_tensors(form, **weights):
    """Return the entry of a config.json whose linear layers are quantized so, but for the head."""
    args = {"symmetric": True, "dynamic": False, **weights}
    group = {"targets": ["Linear"], "weights": args, "format": form}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def fp8_channel_layout(weight):
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-8).div(448).to(torch.bfloat16)
    entry = compressed_tensors("float-quantized", num_bits=8, type="float", strategy="channel")
    return {"weight": fp8(weight.float() / scale.float()), "weight_scale": scale}, entry


def fp8_tensor_layout(weight):
    scale = weight.float().abs().max().div(448).reshape(1)
    entry = compressed_tensors("float-quantized", num_bits=8, type="float", strategy="tensor")
    parts = {"weight": fp8(weight.float() / scale), "weight_scale": scale, "input_scale": torch.ones(1)}
    return parts, entry


def int4_layout(weight, *, symmetric=True, bits=4, group=16):
    """Return a weight as compressed-tensors packs it."""
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

    entry = compressed_tensors(
        "pack-quantized", num_bits=bits, type="int", strategy="group", group_size=group, symmetric=symmetric
    )
    groups = weight.float().unflatten(1, (-1, group))
    least, most = groups.amin(-1), groups.amax(-1)
    half = 2 ** (bits - 1)
    if symmetric:
        scale, zero = torch.maximum(-least, most) / (half - 0.5), None
    else:
        scale = (most - least) / (2 * half - 1)
        zero = (-half - least / scale).round().clamp(-half, half - 1).to(torch.int8)
    state = {"weight": weight.to(torch.bfloat16), "weight_scale": scale.to(torch.bfloat16)}
    if zero is not None:
        state["weight_zero_point"] = zero
    return PackedQuantizationCompressor.compress(state, scheme_of(entry)), entry


def scheme_of(entry):
    """Return what compressed-tensors makes of the one group of an entry."""
    from compressed_tensors.quantization import QuantizationScheme

    return QuantizationScheme.model_validate(entry["config_groups"]["group_0"])


def fp4(weight, scale):
    """Return the nearest floats of four bits to a matrix over its scales, two in a byte."""
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    scaled = weight.float().unflatten(1, (-1, 16)) / scale.float().unsqueeze(-1)
    scaled = scaled.flatten(1)
    codes = (scaled.abs().unsqueeze(-1) - table).abs().argmin(-1) + 8 * (scaled < 0)
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).to(torch.uint8)


def nvfp4_divided_layout(weight):
    entry = compressed_tensors(
        "nvfp4-pack-quantized",
        num_bits=4,
        type="float",
        strategy="tensor_group",
        group_size=16,
        scale_dtype="torch.float8_e4m3fn",
    )
    most = weight.float().unflatten(1, (-1, 16)).abs().amax(-1)
    whole = (448 * 6 / most.max()).reshape(1)
    scale = fp8((most / 6 * whole).clamp(min=2**-9))
    packed = fp4(weight, scale.float() / whole)
    return {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": whole}, entry


def nvfp4_multiplied_layout(weight):
    most = weight.float().unflatten(1, (-1, 16)).abs().amax(-1)
    whole = most.max() / (448 * 6)
    scale = fp8((most / 6 / whole).clamp(min=2**-9))
    entry = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
    parts = {
        "weight": fp4(weight, scale.float() * whole),
        "weight_scale": scale,
        "weight_scale_2": whole,
        "input_scale": torch.tensor(1.0),
    }
    return parts, entry


def comfy_layout(weight):
    scale = weight.float().abs().max() / 448
    return {"weight": fp8(weight.float() / scale), "scale_weight": scale.reshape(1)}, {}


LAYOUTS = {
    "fp8_block": fp8_block_layout,
    "fp8_channel": fp8_channel_layout,
    "fp8_tensor": fp8_tensor_layout,
    "int4": int4_layout,
    "nvfp4_divided": nvfp4_divided_layout,
    "nvfp4_multiplied": nvfp4_multiplied_layout,
    "comfy": comfy_layout,
}


def mxfp4(stack):
    """Return a stack of experts [E, inputs, outputs] as gpt-oss is published: blocks and scales."""
    groups = stack.float().mT.unflatten(-1, (-1, 32))  # [E, outputs, inputs/32, 32]
    exponent = groups.abs().amax(-1).clamp(min=2**-30).log2().floor() - 2
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    scaled = groups / exponent.exp2().unsqueeze(-1)
    codes = (scaled.abs().unsqueeze(-1) - table).abs().argmin(-1) + 8 * (scaled < 0)
    blocks = (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
    return blocks, (exponent + 127).to(torch.uint8)


def mxfp4_folder(source, target):
    """Write the folder of a gpt-oss model with its experts quantized."""
    target.mkdir()
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            blocks, scales = mxfp4(tensor)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_bytes())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (target / "config.json").write_text(json.dumps(config))
    return target
