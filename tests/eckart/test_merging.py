"""Merged statistics: two halves equal the whole."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from eckart import InputError, calibrate, merge_statistics
from eckart.statistics_file import read_statistics


class Experts(nn.Module):
    """Query and key of one input, and an expert to which only positive rows go."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(6, 6), nn.Linear(6, 6)
        self.expert = nn.Linear(6, 4)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        y = torch.tanh(self.query(x) + self.key(x))
        chosen = x[:, 0] > 0
        out = self.head(y)
        return out.index_add(0, chosen.nonzero()[:, 0], self.expert(y[chosen]))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Experts()


def rows(count, seed, *, positive=True):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + 0.3
    x[:, 0] = x[:, 0].abs() if positive else -x[:, 0].abs()
    return x


def write(path, tensors, **metadata):
    save_file(tensors, path, metadata=metadata or None)
    return path


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6 * float(value.abs().max()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_unequal_halves_equal_one_pass(model, tmp_path, dtype):
    first, second = [rows(5, 1), rows(2, 2)], [rows(11, 3)]
    options = {"dtype": dtype}
    whole = calibrate(model, first + second, tmp_path / "whole.safetensors", **options)
    halves = [
        calibrate(model, part, tmp_path / f"{i}.safetensors", **options)
        for i, part in enumerate((first, second))
    ]
    merged = merge_statistics(halves, tmp_path / "merged.safetensors")

    assert merged == tmp_path / "merged.safetensors"
    assert_same_tensors(load_file(merged), load_file(whole))
    with safe_open(merged, "pt") as found, safe_open(whole, "pt") as expected:
        assert found.metadata() == expected.metadata()


def test_gradients_are_added_too(model, tmp_path):
    halves = [
        calibrate(model, [rows(5, i)], tmp_path / f"{i}.safetensors", sensitivity="fisher") for i in (1, 2)
    ]
    merged = load_file(merge_statistics(halves, tmp_path / "merged.safetensors"))

    a, b = map(load_file, halves)
    assert merged.keys() == a.keys() == b.keys()
    for name in ("query", "key", "expert", "head"):
        torch.testing.assert_close(
            merged[f"{name}.grad_gram"], a[f"{name}.grad_gram"] + b[f"{name}.grad_gram"]
        )
    assert read_statistics(tmp_path / "merged.safetensors").kind == "fisher"


def test_an_expert_without_tokens_in_one_half_is_merged_where_that_is_allowed(model, tmp_path):
    first, second = [rows(5, 1)], [rows(7, 2, positive=False)]
    whole = calibrate(model, first + second, tmp_path / "whole.safetensors")
    halves = [calibrate(model, part, tmp_path / f"{i}.safetensors") for i, part in enumerate((first, second))]
    with pytest.raises(InputError, match=r"1\.safetensors has no gram of expert, and .* allow_missing=True"):
        merge_statistics(halves, tmp_path / "merged.safetensors")
    assert not (tmp_path / "merged.safetensors").exists()

    merged = merge_statistics(halves, tmp_path / "merged.safetensors", allow_missing=True)
    assert_same_tensors(load_file(merged), load_file(whole))


def gram(seed, n=3):
    x = torch.randn(5, n, generator=torch.Generator().manual_seed(seed))
    return x.T @ x


def layer(name, seed, n=3, count=5.0):
    count_tensor = torch.tensor([count], dtype=torch.float64)
    mean = torch.full((n,), float(seed))
    return {f"{name}.gram": gram(seed, n), f"{name}.mean": mean, f"{name}.count": count_tensor}


def test_layers_share_what_they_share_in_every_file(tmp_path):
    """In the first file q, k and v are one; in the second only q and k, by another's name."""
    first = write(tmp_path / "1.safetensors", layer("q", 1), same_as=json.dumps({"k": "q", "v": "q"}))
    second = write(
        tmp_path / "2.safetensors", layer("k", 2) | layer("v", 3, count=1.0), same_as=json.dumps({"q": "k"})
    )
    merged = merge_statistics([first, second], tmp_path / "m.safetensors")

    file, tensors = read_statistics(merged), load_file(merged)
    assert file.same_as == {"k": "q"}
    assert file.layers.keys() == {"q", "k", "v"}
    torch.testing.assert_close(tensors["q.gram"], gram(1) + gram(2))
    torch.testing.assert_close(tensors["v.gram"], gram(1) + gram(3))
    assert "k.gram" not in tensors
    assert tensors["q.mean"].tolist() == [1.5] * 3
    assert tensors["v.mean"].tolist() == pytest.approx([(5 * 1 + 1 * 3) / 6] * 3)
    assert tensors["v.count"].tolist() == [6]


def test_files_of_grams_alone_are_merged_also_of_different_precision(tmp_path):
    first = write(tmp_path / "1.safetensors", {"a.gram": gram(1)})
    second = write(tmp_path / "2.safetensors", {"a.gram": gram(2).double()})
    merged = load_file(merge_statistics([first, second], tmp_path / "m.safetensors"))

    assert merged.keys() == {"a.gram"}
    torch.testing.assert_close(merged["a.gram"], gram(1).double() + gram(2).double())


def test_files_that_hold_other_layers_of_the_same_data_are_joined(model, tmp_path):
    batches = [rows(5, 1)]
    parts = [
        calibrate(model, batches, tmp_path / "1.safetensors", include=["query", "key"]),
        calibrate(model, batches, tmp_path / "2.safetensors", exclude=["query", "key"]),
    ]
    whole = calibrate(model, batches, tmp_path / "whole.safetensors")
    merged = merge_statistics(parts, tmp_path / "m.safetensors", allow_missing=True)

    assert_same_tensors(load_file(merged), load_file(whole))


@pytest.mark.parametrize(
    ("first", "second", "metadata", "words"),
    [
        (layer("a", 1), layer("b", 1), ({}, {}), "has no gram of b"),
        (layer("a", 1), layer("a", 1, n=4), ({}, {}), r"a\.gram is \[3, 3\] in .* and \[4, 4\] in"),
        (layer("a", 1), {"a.gram": gram(1)}, ({}, {}), r"has a\.mean and .*2\.safetensors has not"),
        (layer("a", 1), layer("a", 1), ({"kind": "fisher"}, {"kind": "output"}), "'fisher' and .* 'output'"),
        (layer("a", 1), layer("a", 1, count=0.0), ({}, {}), r"a\.count is 0\.0; it must be positive"),
        (layer("a", 1), {"a.gram": gram(1)[:2]}, ({}, {}), r"a\.gram is \[2, 3\]; it must be square"),
        (layer("a", 1), {"a.gram": gram(1).half()}, ({}, {}), r"a\.gram is F16; it must be one of"),
        (layer("a", 1), {"a.gram": gram(1), "a.mean": torch.ones(3)}, ({}, {}), r"has no a\.count, without"),
        (layer("a", 1), layer("a", 1) | {"a.weight": gram(1)}, ({}, {}), r"a\.weight is no statistic"),
        (layer("a", 1), layer("a", 1), ({}, {"same_as": "[]"}), "must be a JSON object"),
        (layer("a", 1), layer("a", 1), ({}, {"same_as": "{"}), "must be a JSON object"),
        (
            layer("a", 1),
            layer("a", 1),
            ({}, {"same_as": '{"b": "c"}'}),
            "says that b is as c, which does not",
        ),
        (
            layer("a", 1),
            layer("a", 1),
            ({}, {"same_as": '{"a": "a"}'}),
            "says that a is as a, which does not",
        ),
        (layer("a", 1), layer("a", 1), ({}, {"same_as": '{"b": "a", "c": "b"}'}), "says that c is as b"),
        (
            layer("a", 1),
            layer("a", 1) | {"a.grad_gram": gram(1, 2)},
            ({"kind": "fisher"}, {"kind": "fisher"}),
            "1.safetensors has no grad_gram of a",
        ),
    ],
)
def test_what_does_not_fit_is_refused(first, second, metadata, words, tmp_path):
    paths = [
        write(tmp_path / f"{i + 1}.safetensors", tensors, **metadata[i])
        for i, tensors in enumerate((first, second))
    ]
    with pytest.raises(InputError, match=words):
        merge_statistics(paths, tmp_path / "m.safetensors")

    assert not list(tmp_path.glob("*m.safetensors*"))


@pytest.mark.parametrize(
    ("paths", "out", "words"),
    [
        ([], "m.safetensors", "there are no files to merge"),
        (["1.safetensors"], "m.bin", "ends in .safetensors"),
        (["1.safetensors"], "nowhere/m.safetensors", "is not a folder"),
    ],
)
def test_what_cannot_be_written_is_refused(paths, out, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "1.safetensors", layer("a", 1))
    with pytest.raises(InputError, match=words):
        merge_statistics(paths, out)
