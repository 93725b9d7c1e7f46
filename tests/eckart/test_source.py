"""Finding a checkpoint on disk: what is taken, and every refusal."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from eckart.errors import InputError
from eckart.source import find_source, open_source

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path):
    """Make two shards and their index."""
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for number, name in enumerate(names):
        save_file({f"x{number}.weight": torch.ones(2, 3)}, tmp_path / name)
    weight_map = {f"x{number}.weight": name for number, name in enumerate(names)}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": weight_map}))
    return tmp_path


def names(source):
    return [path.name for path in source.files]


def test_a_file_is_a_checkpoint(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file({"x.weight": torch.ones(2, 3)}, path)

    for given in (path, str(path), tmp_path):
        source = find_source(given)
        assert names(source) == ["tiny.safetensors"]
        assert [(tensor.name, tensor.shape) for tensor in source.tensors] == [("x.weight", (2, 3))]
    assert open_source(path).name == "tiny"
    assert open_source(tmp_path).name == tmp_path.name


def test_an_index_brings_its_shards(sharded):
    for given in (sharded, sharded / INDEX):
        source = open_source(given)
        assert names(source) == [
            INDEX,
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ]
        assert [tensor.name for tensor in source.tensors] == ["x0.weight", "x1.weight"]


def test_other_files_of_a_model_do_not_matter(sharded):
    (sharded / "config.json").write_text("{}")

    assert len(open_source(sharded).files) == 3


def test_one_shard_can_be_named_by_itself(sharded):
    assert names(open_source(sharded / "model-00001-of-00002.safetensors")) == [
        "model-00001-of-00002.safetensors"
    ]


@pytest.mark.parametrize("given", ["my-model", "J5b0", "a.b_c-d"])
def test_what_is_not_on_disk_may_be_an_id(given):
    assert find_source(given) is None


@pytest.mark.parametrize(
    "given", ["no/such/dir", "gone.safetensors", "gone.safetensors.index.json", "", "ä", "../up", "x" * 129]
)
def test_what_can_be_no_id_must_be_there(given, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no such file or directory"):
        find_source(given)


def spoil_strays(path):
    save_file({"y": torch.ones(1)}, path / "consolidated.safetensors")


def spoil_missing(path):
    (path / "model-00002-of-00002.safetensors").unlink()


def spoil_index(path):
    (path / INDEX).write_text("[]")


def spoil_second_index(path):
    (path / "other.safetensors.index.json").write_text("{}")


def spoil_shard(path):
    (path / "model-00001-of-00002.safetensors").write_bytes(b"x" * 100)


def spoil_agreement(path):
    save_file({"z": torch.ones(2, 3)}, path / "model-00002-of-00002.safetensors")


def spoil_no_index(path):
    (path / INDEX).unlink()


def spoil_empty(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_strays, "does not name consolidated.safetensors"),
        (spoil_missing, "not beside it: model-00002-of-00002.safetensors"),
        (spoil_index, "index.json: "),
        (spoil_second_index, "say which one you mean"),
        (spoil_shard, "model-00001-of-00002.safetensors: "),
        (spoil_agreement, "x1.weight"),
        (spoil_no_index, "say which one you mean"),
        (spoil_empty, "holds no .safetensors file"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_set_that_is_not_whole_is_refused(sharded, spoil, said):
    spoil(sharded)

    with pytest.raises(InputError, match=said):
        open_source(sharded)


def test_strays_do_not_matter_to_an_index_named_by_itself(sharded):
    spoil_strays(sharded)

    assert len(open_source(sharded / INDEX).files) == 3


@pytest.mark.parametrize("name", ["my model.safetensors", "pytorch_model.bin", ".safetensors"])
def test_a_name_the_service_would_not_take_is_refused(tmp_path, name):
    path = tmp_path / name
    save_file({"x": torch.ones(1)}, path)

    with pytest.raises(InputError, match="rename or convert it"):
        open_source(path)


def test_a_fault_in_a_header_is_pointed_at(tmp_path):
    path = tmp_path / "x.safetensors"
    header = json.dumps({"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)

    with pytest.raises(InputError) as caught:
        open_source(path)

    assert [field.pointer for field in caught.value.errors] == ["/w/dtype"]
