"""The output's index lists what the output holds."""

import hashlib

import pytest

from schemas.format.index import parse_index
from worker.checkpoint.writer import write_index

INPUT_INDEX = {"total_size": 1, "note": "é"}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, {"total_size": 20}),
        (INPUT_INDEX, {"total_size": 20, "note": "é"}),
        ({"total_parameters": 9, "total_size": 1}, {"total_parameters": 5, "total_size": 20}),
    ],
)
def test_an_index_is_written_with_its_totals(tmp_path, metadata, expected):
    path = tmp_path / "model.safetensors.index.json"
    weight_map = {"z": "a.safetensors", "a": "b.safetensors"}
    written = write_index(path, weight_map, metadata=metadata, total_size_bytes=20, total_parameters=5)
    raw = path.read_bytes()
    assert (written.size_bytes, written.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    found = parse_index(raw)
    assert list(found.weight_map.items()) == list(weight_map.items())
    assert list(found.metadata.items()) == list(expected.items())
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_metadata_that_json_cannot_hold_are_not_written(tmp_path, value):
    with pytest.raises(ValueError, match=r"JSON|surrogates"):
        write_index(
            tmp_path / "model.safetensors.index.json",
            {"a": "a.safetensors"},
            metadata={"note": value},
            total_size_bytes=20,
            total_parameters=5,
        )
    assert list(tmp_path.iterdir()) == []
