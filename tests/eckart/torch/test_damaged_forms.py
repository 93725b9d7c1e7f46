"""eckart/torch/stored_weight.py: files whose integers or rows are not what they say are refused by name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eckart import LoadError
from eckart.torch import QuantizedLinear, expand, load_compressed
from tests.eckart.torch.factoring import write
from tests.eckart.torch.storing import FORMS, Stored

INPUTS, OUTPUTS = 64, 40


def net():
    return nn.ModuleDict({"a": nn.Linear(INPUTS, OUTPUTS, bias=False)})


def refused(path, tmp_path, words):
    """Whether both ways to read a file refuse it, with the model unchanged and nothing written."""
    model = net()
    before = model["a"].weight.detach().clone()
    for strict in (True, False):
        with pytest.raises(LoadError, match=words):
            load_compressed(model, path, strict=strict)
    assert type(model["a"]) is nn.Linear
    assert torch.equal(model["a"].weight, before)
    with pytest.raises(LoadError, match=words):
        expand(path, tmp_path / "out" / "dense.safetensors")
    return not (tmp_path / "out").exists()


EVERY_TENSOR = [(*form, name) for form in FORMS for name in Stored("a", *form).tensors]


@pytest.mark.parametrize(("method", "codec", "name"), EVERY_TENSOR)
def test_a_tensor_that_is_missing_is_named(method, codec, name, tmp_path):
    layer = Stored("a", method, codec)
    del layer.tensors[name]
    path = write(tmp_path / "x.safetensors", layer.tensors, {"a": layer.entry})

    chain = method in {"svd", "cur"} and not name.endswith("_scale")
    words = rf"lacks .*{name}; the file is damaged"
    # The factors of a chain are told by those that are there.
    assert refused(path, tmp_path, "the factors of a have the shapes|lacks a" if chain else words)


@pytest.mark.parametrize("change", ["shape", "dtype", "scalar"])
@pytest.mark.parametrize(
    ("method", "codec", "name"),
    [case for case in EVERY_TENSOR if case[:2] in {("int8", None), ("int4+svd", "int8"), ("pivot", None)}],
)
def test_a_tensor_of_another_shape_or_dtype_is_named(method, codec, name, change, tmp_path):
    layer = Stored("a", method, codec)
    old = layer.tensors[name]
    changed = {"shape": torch.cat((old, old), -1), "dtype": old.to(torch.int16), "scalar": old.flatten()[0]}
    layer.tensors[name] = changed[change]
    path = write(tmp_path / "x.safetensors", layer.tensors, {"a": layer.entry})

    assert refused(path, tmp_path, rf"{name} is |factors of a have the shapes|a has 64 columns")


WRONG_VALUES = {
    "an entry that lies of the shape": ("int4", "weight_shape", [OUTPUTS, INPUTS + 32], "weight_shape says"),
    "a shape the other way round": ("int3+svd", "weight_shape", [INPUTS, OUTPUTS], "weight_shape says"),
    "a row too far": ("pivot", "rows", [0, 1, OUTPUTS], "rows are not 3 different rows of 40"),
    "a row before the first": ("pivot", "rows", [-1, 1, 2], "rows are not"),
    "a row twice": ("pivot", "rows", [1, 1, 2], "rows are not"),
    "rows that do not ascend": ("pivot", "rows", [3, 1, 2], "rows are not"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_values_that_do_not_fit_are_refused(case, tmp_path):
    method, name, values, words = WRONG_VALUES[case]
    layer = Stored("a", method)
    layer.tensors[f"a.{name}"] = torch.tensor(values, dtype=layer.tensors[f"a.{name}"].dtype)

    assert refused(write(tmp_path / "x.safetensors", layer.tensors, {"a": layer.entry}), tmp_path, words)


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("int4", {"group": 24}, "64 columns, which do not come in groups of 24"),
        ("int4", {"group": 64}, r"a.weight_scale is F32 \[40, 2\], but"),
        ("int4", {"method": "int3"}, r"a.weight_packed is I32 \[40, 8\]"),
        ("int4", {"shape": [40, 96]}, "a.weight_packed is"),
        ("int4+svd", {"rank": 2}, r"a.0.weight is F32 \[3, 64\]"),
        ("int4", {"rank": 2}, "lacks a.0.weight, a.1.weight"),
        ("int8", {"method": "svd"}, "the 'eckart' entry"),
        ("int8", {"shape": [40, 96]}, r"a.weight is I8 \[40, 64\]"),
        ("pivot", {"rank": 40}, "a has 40 pivot rows of 40"),
        ("pivot", {"rank": 2}, "a.0.weight is"),
        ("svd", {"codec": "int8", "dtype": "I8"}, "lacks a.0.weight_scale"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(method, changes, words, tmp_path):
    layer = Stored("a", method)
    path = write(tmp_path / "x.safetensors", layer.tensors, {"a": layer.entry | changes})

    assert refused(path, tmp_path, words)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("method", ["int8", "int4", "int4+svd", "pivot"])
def test_integers_without_an_entry_are_never_taken_for_a_weight(method, strict, tmp_path):
    layer, model = Stored("a", method), net()
    before = model["a"].weight.detach().clone()
    save_file(layer.tensors, tmp_path / "x.safetensors")

    if method == "int8" or strict:
        with pytest.raises(LoadError, match=r"nothing in the checkpoint says|lacks what the model needs"):
            load_compressed(model, tmp_path / "x.safetensors", strict=strict)
    else:
        with pytest.warns(UserWarning, match="holds no factored layers"):
            found = load_compressed(model, tmp_path / "x.safetensors", strict=False)
        assert found.missing_keys == ["a.weight"]
        assert set(found.unexpected_keys) == layer.tensors.keys()
    assert torch.equal(model["a"].weight, before)


def test_int8_factors_without_an_entry_are_told_by_their_scales(tmp_path):
    layer = Stored("a", "svd", "int8")
    save_file(layer.tensors, tmp_path / "x.safetensors")
    model = load_compressed(net(), tmp_path / "x.safetensors")

    torch.testing.assert_close(model["a"].weight.clone(), layer.dense.float())
    assert model["a"].state_dict()["0.weight"].dtype == torch.int8


@pytest.mark.parametrize("strict", [True, False])
def test_a_whole_weight_never_goes_into_integers(strict, tmp_path):
    layer = Stored("a", "int8")
    path = write(tmp_path / "x.safetensors", layer.tensors, {"a": layer.entry})
    model = load_compressed(net(), path)
    save_file(net().state_dict(), tmp_path / "dense.safetensors")

    with pytest.raises(LoadError, match=r"compressed in the model already.*a\.weight is whole"):
        load_compressed(model, tmp_path / "dense.safetensors", strict=strict)
    assert type(model["a"]) is QuantizedLinear
    torch.testing.assert_close(model["a"].weight.clone(), layer.dense.float())
