"""A job on a quantized checkpoint: weights are decoded to be factored, and all else stays as it is."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.layouts import LAYOUTS, comfy_layout, fp8_block_layout, int4_layout, nvfp4_multiplied_layout

ENTRY = fp8_block_layout(torch.ones(16, 16))[1]
UP, DOWN = "blocks.0.up", "blocks.0.down"


@pytest.fixture
def folder(tmp_path, gaussian):
    """Return a function that writes a folder of two modules in a layout, and what they hold."""

    def write(layout=fp8_block_layout, *, shards=1):
        path = tmp_path / "model"
        path.mkdir()
        stored = {"norm.weight": gaussian(96, dtype=torch.bfloat16)}
        entry = {}
        for module, shape in ((UP, (128, 96)), (DOWN, (96, 128))):
            parts, entry = layout(gaussian(*shape))
            stored |= {f"{module}.{last}": part for last, part in parts.items()}
            stored[f"{module}.bias"] = gaussian(shape[0], dtype=torch.bfloat16)
        names = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
        if shards == 1:
            names = ["model.safetensors"]
        weight_map = {name: names[number % shards] for number, name in enumerate(stored)}
        for file in names:
            save_file({n: t for n, t in stored.items() if weight_map[n] == file}, path / file)
        if shards > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            (path / "model.safetensors.index.json").write_text(json.dumps(index))
        config = {"model_type": "test", "quantization_config": entry}
        (path / "config.json").write_text(json.dumps(config))
        return path, stored

    return write


@pytest.mark.parametrize("shards", [1, 3])
def test_factors_take_the_place_of_values_and_scales(folder, compress, shards):
    path, stored = folder(shards=shards)
    result = compress(path, rank=8, include=["*.up"])
    found = result.tensors()
    (layer,) = result.report.layers
    assert (layer.outcome, layer.encoding, layer.dtype) == ("factored", "fp8_block", "BF16")
    assert found.keys() == (
        stored.keys() - {f"{UP}.weight", f"{UP}.weight_scale_inv", f"{UP}.bias"}
        | {f"{UP}.0.weight", f"{UP}.1.weight", f"{UP}.1.bias"}
    )
    for name in found.keys() & stored.keys():
        assert torch.equal(found[name].view(torch.uint8), stored[name].view(torch.uint8)), name
    factors = found[f"{UP}.0.weight"], found[f"{UP}.1.weight"]
    assert {factor.dtype for factor in factors} == {torch.bfloat16}
    scale = stored[f"{UP}.weight_scale_inv"].repeat_interleave(16, 0).repeat_interleave(16, 1)
    dense = stored[f"{UP}.weight"].float() * scale
    error = torch.linalg.norm(dense - factors[1].float() @ factors[0].float()) / torch.linalg.norm(dense)
    assert layer.relative_error == pytest.approx(float(error), rel=1e-4)


def test_a_rank_has_to_save_bytes(folder, compress):
    path, _ = folder()
    scales = 4 * (8 * 6)
    most = (128 * 96 + scales - 1) // (2 * (128 + 96))
    at_most = compress(path, rank=most, include=["*.up"]).report.layers[0]
    assert (at_most.rank, at_most.break_even_rank) == (most, most)
    assert at_most.bytes_after < at_most.bytes_before == 128 * 96 + scales
    above = compress(path, rank=most + 1, include=["*.up"]).report.layers[0]
    assert (above.outcome, above.reason) == ("kept", "no_saving")
    # The factors of that rank have half the parameters.
    assert compress(path, rank=most, include=["*.up"]).report.totals.bytes_after < sum(
        tensor.nbytes for tensor in load_file(path / "model.safetensors").values()
    )


def test_totals_count_weights_and_not_their_scales(folder, compress):
    path, _ = folder()
    totals = compress(path, rank=8, include=["*.up"]).report.totals
    before = 96 + 2 * 128 * 96 + 128 + 96
    assert totals.parameters_before == before
    assert totals.parameters_after == before - 128 * 96 + 8 * (128 + 96)


def test_config_says_which_modules_are_no_longer_quantized(folder, compress):
    path, _ = folder()
    config = json.loads((compress(path, rank=8, include=["*.up"]).directory / "config.json").read_text())
    assert config["quantization_config"] == {**ENTRY, "modules_to_not_convert": [UP]}
    assert list(config["eckart"]["layers"]) == [UP]
    dense = compress(path, rank=8, include=["*.up"], layout="dense")
    config = json.loads((dense.directory / "config.json").read_text())
    assert config["quantization_config"] == {**ENTRY, "modules_to_not_convert": [UP]}
    assert "eckart" not in config
    assert dense.tensors()[f"{UP}.weight"].dtype == torch.bfloat16


def test_config_of_a_model_without_quantized_weights_names_no_method_but_ours(folder, compress):
    path, _ = folder()
    config = json.loads((compress(path, rank=8).directory / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "eckart"
    assert "eckart" not in config
    dense = json.loads((compress(path, rank=8, layout="dense").directory / "config.json").read_text())
    assert "quantization_config" not in dense


def test_a_budget_in_bytes_is_met(folder, compress):
    path, _ = folder()
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    result = compress(path, rank={"budget_bytes": int(size * 0.7)})
    assert sum(file.stat().st_size for file in result.directory.glob("*.safetensors")) <= size * 0.7
    assert result.report.totals.layers_factored


def test_a_weight_of_which_nothing_tells_how_it_is_stored_stays(folder, compress):
    path, stored = folder()
    (path / "config.json").unlink()
    result = compress(path, rank=8)
    assert not result.report.layers
    rules = {entry.rule: entry.names for entry in result.report.not_selected}
    assert rules["encoding"] == (f"{DOWN}.weight", f"{UP}.weight")
    assert result.tensors().keys() == stored.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_factored_of_each_layout_loses_all_its_tensors(folder, compress, layout):
    path, stored = folder(LAYOUTS[layout])
    result = compress(path, rank=8, include=["*.up"])
    (layer,) = result.report.layers
    assert (layer.outcome, layer.rank) == ("factored", 8)
    own = {name for name in stored if name.startswith(f"{UP}.")}
    found = result.tensors()
    assert found.keys() == stored.keys() - own | {f"{UP}.0.weight", f"{UP}.1.weight", f"{UP}.1.bias"}
    assert layer.bytes_before == sum(stored[name].nbytes for name in own - {f"{UP}.bias"})
    for name in stored.keys() - own:
        assert torch.equal(
            found[name].reshape(-1).view(torch.uint8), stored[name].reshape(-1).view(torch.uint8)
        )


def test_a_packed_weight_of_another_shape_than_its_words_say_stays_dense(folder, compress):
    path, stored = folder(int4_layout)
    stored[f"{UP}.weight_shape"] -= 1
    save_file(stored, path / "model.safetensors")
    report = compress(path, rank=8).report
    assert {layer.name: layer.reason for layer in report.layers} == {UP: "shape_differs", DOWN: None}


def test_modelopt_may_say_it_in_a_file_of_its_own(folder, compress):
    path, _ = folder(nvfp4_multiplied_layout)
    (path / "config.json").write_text(json.dumps({"model_type": "test"}))
    own = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["h"]},
    }
    (path / "hf_quant_config.json").write_text(json.dumps(own))
    some = compress(path, rank=8, include=["*.up"]).directory
    found = json.loads((some / "hf_quant_config.json").read_text())
    assert found["quantization"] == {"quant_algo": "NVFP4", "exclude_modules": ["h", UP]}
    assert found["producer"] == own["producer"]
    everything = compress(path, rank=8).directory
    assert not (everything / "hf_quant_config.json").exists()
    untouched = compress(path, rank=8, include=["nothing"]).directory
    assert json.loads((untouched / "hf_quant_config.json").read_text()) == own


def test_metadata_of_a_diffusion_model_lose_the_modules_that_are_factored(folder, compress):
    path, stored = folder(comfy_layout)
    stored = {name.replace("scale_weight", "weight_scale"): tensor for name, tensor in stored.items()}
    layers = {UP: {"format": "float8_e4m3fn"}, DOWN: {"format": "float8_e4m3fn"}}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers}), "k": "v"}
    save_file(stored, path / "model.safetensors", metadata=metadata)
    result = compress(path, rank=8, include=["*.up"])
    assert result.report.layers[0].outcome == "factored"
    with safe_open(result.directory / "eckart.safetensors", "pt") as file:
        found = file.metadata()
    assert json.loads(found["_quantization_metadata"]) == {
        "format_version": "1.0",
        "layers": {DOWN: layers[DOWN]},
    }
    assert found["k"] == "v"
    del metadata["_quantization_metadata"]
    save_file(stored, path / "model.safetensors", metadata=metadata)
    assert not compress(path, rank=8).report.layers
