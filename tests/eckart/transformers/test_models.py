"""48 real classes: saved by transformers, compressed by the default spec, loaded by one call, run."""

import warnings

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import ModelOutput

from eckart import LoadError
from eckart.torch import load_compressed, save_compressed
from tests.compression import compress
from tests.eckart.transformers.folders import QUIET, low_rank_layers, write_product
from tests.eckart.transformers.models import CASES, VIDEO, build

pytestmark = QUIET


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


def tensors_in(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("case", [*CASES, VIDEO], ids=lambda case: case.model)
def test_a_class_runs_on_its_compressed_folder(case, tmp_path):
    dense, folder, product = (tmp_path / name for name in ("dense", "compressed", "product"))
    model = build(case)
    original = run(model, case)
    model.save_pretrained(dense)
    report = compress(dense, folder)
    write_product(folder, dense, product)
    assert tensors_in(product) == tensors_in(dense)
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


SAVED_UNDER_OTHER_NAMES = (
    "ViTForImageClassification",
    "SwinModel",
    "EsmModel",
    "LlavaForConditionalGeneration",
    "MixtralForCausalLM",
)


@pytest.mark.parametrize("name", SAVED_UNDER_OTHER_NAMES)
def test_what_from_pretrained_loaded_is_saved_for_load_compressed(name, tmp_path):
    """These classes are saved under other names than their modules have, so only transformers loads them."""
    (case,) = (case for case in CASES if case.model == name)
    model = build(case)
    model.save_pretrained(tmp_path / "dense")
    compress(tmp_path / "dense", tmp_path / "compressed")
    with pytest.raises(LoadError, match="from_pretrained") as refused:
        load_compressed(build(case), tmp_path / "compressed")
    # Of LLaVA's names most are those of its vision tower, which lack only a prefix.
    assert ("rename=" in str(refused.value)) == name.startswith("Llava")

    with warnings.catch_warnings(action="ignore", category=UserWarning):
        factored = type(model).from_pretrained(tmp_path / "compressed")
    save_compressed(factored, tmp_path / "own.safetensors")
    loaded = load_compressed(build(case), tmp_path / "own.safetensors")
    assert low_rank_layers(loaded)
    torch.testing.assert_close(run(loaded, case), run(factored, case), rtol=0, atol=1e-6)
