"""Finding a checkpoint on disk (eckart/checkpoint.py): what is accepted, and every refusal."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from eckart.checkpoint import CHECKPOINT_ID, FILE_NAME, find_checkpoint, open_checkpoint
from eckart.errors import InputError
from schemas.format import names as server_names

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
    return [path.name for path in source.paths]


def test_a_file_is_a_checkpoint(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file({"x.weight": torch.ones(2, 3)}, path)

    for given in (path, str(path), tmp_path):
        source = find_checkpoint(given)
        assert names(source) == ["tiny.safetensors"]
        content = path.read_bytes()
        assert list(source.headers()) == [(path.name, content[: len(content) - 24])]
    assert open_checkpoint(path).name == "tiny"
    assert open_checkpoint(tmp_path).name == tmp_path.name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-1], "is cut short: 1 bytes are missing"),
        (lambda content: content[:-24], "is cut short: 24 bytes are missing"),
        (lambda content: content + b"xyz", "has 3 bytes after its data"),
    ],
)
def test_a_file_of_another_size_than_its_header_says_is_refused_before_anything_is_sent(
    tmp_path, change, words
):
    path = tmp_path / "tiny.safetensors"
    save_file({"x.weight": torch.ones(2, 3)}, path, metadata={"format": "pt"})
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(InputError, match=words):
        list(open_checkpoint(path).headers())


@pytest.mark.parametrize("header", [b"{", b"[]", b"{}", b'{"a": 1}', b'{"a": {"data_offsets": ["x", "y"]}}'])
def test_a_malformed_header_is_left_to_the_service(tmp_path, header):
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)

    assert list(open_checkpoint(path).headers()) == [(path.name, path.read_bytes())]


def test_an_index_brings_its_shards(sharded):
    for given in (sharded, sharded / INDEX):
        source = open_checkpoint(given)
        assert names(source) == [
            INDEX,
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ]
        assert [name for name, _ in source.headers()] == names(source)
        assert next(source.headers()) == (INDEX, (sharded / INDEX).read_bytes())


def test_a_plan_reads_the_config_of_a_folder(sharded):
    (sharded / "config.json").write_text("{}")
    (sharded / "vocab.txt").write_text("a")

    first, *rest = open_checkpoint(sharded).headers()
    assert first == ("config.json", b"{}")
    assert [name for name, _ in rest] == [name for name, _ in open_checkpoint(sharded / INDEX).headers()]


def test_one_shard_can_be_named_by_itself(sharded):
    assert names(open_checkpoint(sharded / "model-00001-of-00002.safetensors")) == [
        "model-00001-of-00002.safetensors"
    ]


@pytest.mark.parametrize("given", ["my-model", "J5b0", "a.b_c-d"])
def test_what_is_not_on_disk_may_be_an_id(given):
    assert find_checkpoint(given) is None


@pytest.mark.parametrize(
    "given", ["no/such/dir", "gone.safetensors", "gone.safetensors.index.json", "", "ä", "../up", "x" * 129]
)
def test_what_can_be_no_id_must_be_there(given, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no such file or directory"):
        find_checkpoint(given)


def spoil_strays(path):
    save_file({"y": torch.ones(1)}, path / "consolidated.safetensors")


def spoil_missing(path):
    (path / "model-00002-of-00002.safetensors").unlink()


def spoil_index(path):
    (path / INDEX).write_text("[]")


def spoil_weight_map(path):
    (path / INDEX).write_text('{"weight_map": {"x": 4}}')


def spoil_with_a_path(path):
    (path / INDEX).write_text('{"weight_map": {"x": "../other/model.safetensors"}}')


def spoil_second_index(path):
    (path / "other.safetensors.index.json").write_text("{}")


def spoil_no_index(path):
    (path / INDEX).unlink()


def spoil_empty(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_strays, "does not name consolidated.safetensors"),
        (spoil_missing, "not in its directory: model-00002-of-00002.safetensors"),
        (spoil_index, "is no index: "),
        (spoil_weight_map, "4 cannot be the name of a checkpoint's file"),
        (spoil_with_a_path, "'../other/model.safetensors' cannot be the name of a checkpoint's file"),
        (spoil_second_index, "give the one you mean"),
        (spoil_no_index, "give the one you mean"),
        (spoil_empty, "holds no .safetensors file"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_set_that_is_not_whole_is_refused(sharded, spoil, said):
    spoil(sharded)

    with pytest.raises(InputError, match=said):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "index", ["model.safetensors.index.fp16.json", "model.safetensors.index.non_ema.json"]
)
def test_the_index_of_a_variant_is_an_index(sharded, index):
    """Transformers and diffusers put the variant between `index` and `json`."""
    (sharded / INDEX).rename(sharded / index)

    for given in (sharded, sharded / index):
        assert names(open_checkpoint(given))[0] == index
    assert open_checkpoint(sharded / index).name == "model"
    with pytest.raises(InputError, match="no such file"):
        find_checkpoint("gone.safetensors.index.fp16.json")


def test_two_variants_side_by_side_are_asked_about(sharded):
    (sharded / "model.safetensors.index.fp16.json").write_text((sharded / INDEX).read_text())

    with pytest.raises(InputError, match="give the one you mean"):
        open_checkpoint(sharded)


def test_strays_do_not_matter_to_an_index_named_by_itself(sharded):
    spoil_strays(sharded)

    assert len(open_checkpoint(sharded / INDEX).paths) == 3


@pytest.mark.parametrize("name", ["my model.safetensors", "pytorch_model.bin", ".safetensors"])
def test_a_name_the_service_would_not_take_is_refused(tmp_path, name):
    path = tmp_path / name
    save_file({"x": torch.ones(1)}, path)

    with pytest.raises(InputError, match="rename or convert it"):
        open_checkpoint(path)


def test_names_and_ids_are_those_that_the_server_accepts():
    assert (CHECKPOINT_ID.pattern, FILE_NAME.pattern) == tuple(
        pattern.pattern.removeprefix("^").removesuffix("$")
        for pattern in (server_names.CHECKPOINT_ID, server_names.FILE_NAME)
    )


@pytest.mark.parametrize("content", [b"", b"abc", b"x" * 100, (9).to_bytes(8, "little") + b"{}"])
def test_a_file_without_a_header_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)

    with pytest.raises(InputError, match="is not a safetensors file"):
        list(open_checkpoint(path).headers())
