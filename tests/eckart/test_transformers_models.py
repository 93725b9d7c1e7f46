"""48 real classes: saved by transformers, compressed by the default spec, loaded by one call, run."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import ModelOutput

import eckart.transformers  # noqa: F401 - registers the method
from schemas.format.companion import CONFIG_NAME
from schemas.spec import CompressionSpec
from tests.eckart.transformers_models import CASES, build
from worker.local import compress_local

DEFAULT = CompressionSpec.model_validate({"rank": {"ratio": 0.5}})
pytestmark = pytest.mark.filterwarnings("ignore:::transformers", "ignore:::torch", "ignore:::accelerate")


def compressed(dense, target):
    return compress_local(dense, target, DEFAULT, device=torch.device("cpu"), observe=lambda progress: None)


def write_product(compressed, dense, target):
    """Multiply the factors out with numpy, and write a folder with the names and the config of the input."""
    stored = load_file(compressed / "eckart.safetensors")
    config = json.loads((compressed / CONFIG_NAME).read_text())
    for name, entry in config["quantization_config"]["layers"].items():
        first, last = (stored.pop(f"{name}.{i}.weight").double().numpy() for i in (0, 1))
        product = first @ last if entry.get("transposed") else last @ first
        stored[f"{name}.weight"] = torch.from_numpy(product).float()
        if f"{name}.1.bias" in stored:
            stored[f"{name}.bias"] = stored.pop(f"{name}.1.bias")
    assert stored.keys() == load_file(dense / "model.safetensors").keys()
    shutil.copytree(dense, target)
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})


def run(model, case):
    """Return all floating tensors that a model computes."""
    with torch.no_grad():
        return dict(floats("", model(**case.inputs())))


def floats(name, value):
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, ModelOutput | dict):
        for key, part in value.items():
            yield from floats(f"{name}.{key}", part)
    elif isinstance(value, tuple | list):
        for key, part in enumerate(value):
            yield from floats(f"{name}.{key}", part)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_a_class_runs_on_its_compressed_folder(case, tmp_path):
    dense, folder, product = (tmp_path / name for name in ("dense", "compressed", "product"))
    model = build(case)
    original = run(model, case)
    model.save_pretrained(dense)
    report = compressed(dense, folder)
    write_product(folder, dense, product)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    expected, reference = type(model).from_pretrained(product, output_loading_info=True)

    assert report.totals.layers_factored
    assert set(info["missing_keys"]) == set(reference["missing_keys"])
    assert not info["unexpected_keys"]
    outputs, wanted = run(loaded, case), run(expected, case)
    assert outputs.keys() == wanted.keys() == original.keys()
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=1e-5)
    # The comparison is worth something only where the factors matter.
    assert any((value - original[name]).abs().max() > 1e-2 for name, value in outputs.items())


def test_there_are_48_classes():
    assert len({case.model for case in CASES}) == 48
