"""eckart/transformers: damaged folders are refused."""

import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from eckart import EckartError, LoadError
from tests.eckart.transformers.folders import QUIET, change_config, quantization_of

pytestmark = QUIET


DAMAGES = {
    "factors are missing": lambda state: state.pop("model.layers.0.mlp.up_proj.1.weight"),
    "a layer is missing": lambda state: [state.pop(f"model.layers.0.mlp.up_proj.{i}.weight") for i in (0, 1)],
    "a factor has another rank": lambda state: state.update(
        {"model.layers.0.mlp.up_proj.1.weight": torch.ones(48, 3)}
    ),
    "a layer is dense": lambda state: state.update({"model.layers.0.mlp.up_proj.weight": torch.ones(48, 32)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(shared, tmp_path, damage):
    shutil.copytree(shared.compressed, tmp_path / "damaged")
    path = tmp_path / "damaged" / "eckart.safetensors"
    state = load_file(path)
    DAMAGES[damage](state)
    save_file(state, path, metadata={"format": "pt"})
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(LoadError, match=r"model\.layers\.0\.mlp\.up_proj.*damaged"):
            shared.kind.from_pretrained(tmp_path / "damaged", **options)


def test_a_cut_file_is_refused(shared, tmp_path):
    shutil.copytree(shared.compressed, tmp_path / "cut")
    path = tmp_path / "cut" / "eckart.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises((EckartError, SafetensorError), match="incomplete"):
        shared.kind.from_pretrained(tmp_path / "cut")


def test_a_config_of_another_result_is_refused(shared, tmp_path):
    shutil.copytree(shared.compressed, tmp_path / "mixed")
    quantization = quantization_of(tmp_path / "mixed")
    del quantization["layers"]["model.layers.1.mlp.down_proj"]
    change_config(tmp_path / "mixed", {"quantization_config": quantization})
    with pytest.raises(LoadError, match=r"lacks factored layers of the files: model.layers.1.mlp.down_proj"):
        shared.kind.from_pretrained(tmp_path / "mixed")
