"""worker/checkpoint/writer.py: stock safetensors loads what it writes, which is whole or not there."""

import hashlib
import json
import os
import struct
import tracemalloc

import pytest
import safetensors.torch
import torch

from schemas.format.errors import CheckpointError
from schemas.format.header import NewTensor
from schemas.format.header_stream import read_header
from schemas.format.index import ShardIndex, parse_index
from schemas.format.tensor import TensorInfo
from worker.checkpoint.reader import CheckpointReader, dtype_name
from worker.checkpoint.writer import CheckpointWriter, write_index


def names_in(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def new_tensor_of(name: str, tensor: torch.Tensor) -> NewTensor:
    return NewTensor(name, dtype_name(tensor.dtype), tuple(tensor.shape))


def save(path, tensors, metadata=None):
    with CheckpointWriter(path, [new_tensor_of(*item) for item in tensors.items()], metadata) as writer:
        while (info := writer.next) is not None:
            writer.write(tensors[info.name])
    return writer.written


def copy_all(reader: CheckpointReader, path) -> None:
    infos = {info.name: info for info in reader.header.tensors}
    new_tensors = [NewTensor(info.name, info.dtype, info.shape) for info in infos.values()]
    with CheckpointWriter(path, new_tensors, reader.header.metadata) as writer:
        while (following := writer.next) is not None:
            writer.copy(infos[following.name], reader.chunks(infos[following.name]))


def mixed() -> dict[str, torch.Tensor]:
    """Dtypes whose sizes would put one another off their multiples."""
    return {
        "flag": torch.tensor([True]),
        "double": torch.tensor([[1.5, -2.0]], dtype=torch.float64),
        "half": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16),
        "float": torch.arange(3, dtype=torch.float32),
        "bfloat": torch.tensor(7.0, dtype=torch.bfloat16),
        "eight": torch.tensor([1.0, 2.0, -4.0]).to(torch.float8_e4m3fn),
        "complex": torch.tensor([1 + 2j], dtype=torch.complex64),
        "empty": torch.zeros(0, 5, dtype=torch.float64),
    }


def test_a_written_file_is_loaded_by_stock_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = mixed()
    written = save(path, tensors, {"format": "pt", "é": "\n"})
    for backend in ("mmap", "pread"):
        loaded = safetensors.torch.load_file(path, backend=backend)
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert loaded[name].shape == tensor.shape
            assert torch.equal(loaded[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
    raw = path.read_bytes()
    assert (written.name, written.size_bytes) == (path.name, len(raw))
    assert written.sha256 == hashlib.sha256(raw).hexdigest()
    assert read_header(path).metadata == {"format": "pt", "é": "\n"}
    assert names_in(tmp_path) == [path.name]


def write_in_given_order(path, tensors):
    entries, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        entries[name] = {
            "dtype": dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        data += raw
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def misplaced(path) -> list[str]:
    """Name the tensors that a reader which maps the file finds off the multiples of their element size."""
    loaded = safetensors.torch.load_file(path, backend="mmap")
    return [name for name, tensor in loaded.items() if tensor.data_ptr() % tensor.element_size()]


def test_a_misaligned_input_is_copied_into_an_aligned_output(tmp_path):
    path, copied = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    tensors = {
        "flag": torch.tensor([1], dtype=torch.uint8),
        "float": torch.ones(3),
        "half": torch.ones(1).half(),
    }
    write_in_given_order(path, tensors)
    assert misplaced(path) == ["float", "half"]
    with CheckpointReader(path) as reader:
        copy_all(reader, copied)
    assert misplaced(copied) == []
    assert [info.name for info in read_header(copied).tensors] == ["float", "half", "flag"]
    assert safetensors.torch.load_file(copied)["float"].tolist() == [1, 1, 1]


def test_the_data_begins_at_a_multiple_of_eight(tmp_path):
    for length in range(1, 18):
        path = tmp_path / f"{length}.safetensors"
        save(path, {"w" * length: torch.ones(1)})
        assert read_header(path).data_start % 8 == 0


def test_an_aligned_order_is_kept(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {
        "z": torch.zeros(4, dtype=torch.float16),
        "a": torch.zeros(2),
        "m": torch.zeros(1, dtype=torch.int8),
    }
    save(path, tensors)
    assert [info.name for info in read_header(path).tensors] == ["z", "a", "m"]


def test_a_copy_is_byte_for_byte(tmp_path):
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save(source, mixed(), {"a": "b"})
    with CheckpointReader(source) as reader:
        copy_all(reader, target)
    assert target.read_bytes() == source.read_bytes()


def test_sub_byte_dtypes_are_copied(tmp_path):
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    header = json.dumps(
        {
            "four": {"dtype": "F4", "shape": [6], "data_offsets": [0, 3]},
            "six": {"dtype": "F6_E3M2", "shape": [4], "data_offsets": [3, 6]},
        }
    ).encode()
    source.write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(6)))
    with CheckpointReader(source) as reader:
        copy_all(reader, target)
    assert target.read_bytes()[-6:] == bytes(range(6))


def test_any_strides_are_written_in_order(tmp_path):
    path = tmp_path / "model.safetensors"
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"transposed": whole.T, "sliced": whole[:, ::2], "tracked": torch.nn.Parameter(whole[1:3])}
    save(path, tensors)
    loaded = safetensors.torch.load_file(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert save(first, mixed(), {"a": "b"}).sha256 == save(second, mixed(), {"a": "b"}).sha256
    assert first.read_bytes() == second.read_bytes()


NEW_TENSORS = [NewTensor("a", "F32", (2,)), NewTensor("b", "F32", (3,))]


def write_each(path, new_tensors, *tensors, then: BaseException | None = None) -> None:
    with CheckpointWriter(path, new_tensors) as writer:
        for tensor in tensors:
            writer.write(tensor)
        if then is not None:
            raise then


def test_a_failed_block_publishes_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"as it was")
    with pytest.raises(KeyboardInterrupt):
        write_each(path, NEW_TENSORS, torch.zeros(2), torch.zeros(3), then=KeyboardInterrupt())
    assert names_in(tmp_path) == [path.name]
    assert path.read_bytes() == b"as it was"


def test_nothing_is_visible_before_the_block_ends(tmp_path):
    path = tmp_path / "model.safetensors"
    with CheckpointWriter(path, NEW_TENSORS) as writer:
        writer.write(torch.zeros(2))
        writer.write(torch.zeros(3))
        assert not path.exists()
    assert path.exists()


def test_a_block_that_leaves_a_tensor_out_publishes_nothing(tmp_path):
    with pytest.raises(ValueError, match="incomplete: b was not written"):
        write_each(tmp_path / "model.safetensors", NEW_TENSORS, torch.zeros(2))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros(2, 1), torch.zeros(2).int()])
def test_another_tensor_than_the_next_is_refused(tmp_path, tensor):
    with pytest.raises(ValueError, match="a comes next as F32"):
        write_each(tmp_path / "model.safetensors", NEW_TENSORS, tensor)
    assert names_in(tmp_path) == []


def test_more_tensors_than_declared_are_refused(tmp_path):
    with pytest.raises(ValueError, match="written already"):
        write_each(tmp_path / "model.safetensors", NEW_TENSORS[:1], torch.zeros(2), torch.zeros(2))
    assert names_in(tmp_path) == []


def test_a_source_that_shrinks_before_its_copy_publishes_nothing(tmp_path):
    source, path = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save(source, {"a": torch.ones(1000)})
    with CheckpointReader(source) as reader:
        os.truncate(source, 1000)
        with pytest.raises(CheckpointError, match="changed"):
            copy_all(reader, path)
    assert names_in(tmp_path) == [source.name]


def test_a_copy_of_too_few_bytes_publishes_nothing(tmp_path):
    source, path = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save(source, {"a": torch.ones(2)})
    info = TensorInfo("a", "F32", (2,), 0, 4)
    with (
        CheckpointReader(source) as reader,
        pytest.raises(ValueError, match="bytes, not"),
        CheckpointWriter(path, NEW_TENSORS[:1]) as writer,
    ):
        writer.copy(info, reader.chunks(info))
    assert names_in(tmp_path) == [source.name]


def test_a_copy_holds_a_few_mebibytes(tmp_path):
    source, path = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save(source, {"a": torch.zeros(16 << 20)})
    with CheckpointReader(source) as reader:
        tracemalloc.start()
        try:
            copy_all(reader, path)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak_bytes < 8 << 20
    assert path.stat().st_size == source.stat().st_size


@pytest.mark.parametrize(
    ("new_tensors", "fault"),
    [
        ([NEW_TENSORS[0], NEW_TENSORS[0]], "duplicate-name"),
        ([NewTensor("__metadata__", "F32", (1,))], "reserved-name"),
        ([NewTensor("n" * 1025, "F32", (1,))], "name-too-long"),
        ([NewTensor("w", "F32", (1,) * 9)], "too-many-dimensions"),
        ([], "no-tensors"),
    ],
)
def test_what_a_reader_would_refuse_is_not_written(tmp_path, new_tensors, fault):
    with pytest.raises(CheckpointError) as refused:
        CheckpointWriter(tmp_path / "model.safetensors", new_tensors)
    assert refused.value.fault == fault
    assert names_in(tmp_path) == []


def test_a_header_over_what_is_read_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="32000000") as refused:
        CheckpointWriter(tmp_path / "model.safetensors", NEW_TENSORS, {"eckart": "x" * 32_000_000})
    assert refused.value.fault == "output-header-too-large"


# The index.

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
    written = write_index(
        path, weight_map, source=ShardIndex({}, metadata), total_size_bytes=20, total_parameters=5
    )
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
            source=ShardIndex({}, {"note": value}),
            total_size_bytes=20,
            total_parameters=5,
        )
    assert list(tmp_path.iterdir()) == []
