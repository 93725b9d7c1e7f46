"""worker/checkpoint/reader.py: reads what stock safetensors reads, and notices a file that changes."""

import json
import os
import struct
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from schemas.format.errors import CheckpointError
from worker.checkpoint.reader import TORCH_DTYPES, CheckpointReader, dtype_name, torch_dtype


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def some_tensors() -> dict[str, torch.Tensor]:
    raw = torch.arange(256, dtype=torch.uint8).repeat(3)
    tensors = {
        name: raw[: 24 * 8].view(dtype)[:24].reshape(2, 3, 4).clone()
        for name, dtype in TORCH_DTYPES.items()
        # safetensors.torch names this dtype, but does not write it.
        if dtype not in {torch.bool, torch.float8_e8m0fnu}
    }
    return tensors | {
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "empty": torch.zeros(3, 0, 2),
    }


def test_every_dtype_is_read_as_it_was_saved(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = some_tensors()
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with CheckpointReader(path) as reader:
        assert reader.header.metadata == {"format": "pt"}
        assert {info.name for info in reader.header.tensors} == tensors.keys()
        for name, tensor in tensors.items():
            assert bits(reader.read(name)) == bits(tensor)


def test_a_tensor_is_the_callers_own(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.ones(4, 4)}, path)
    with CheckpointReader(path) as reader:
        first = reader.read("w")
        first.zero_()
        assert reader.read("w").sum() == 16
    assert first.is_contiguous()
    assert first.untyped_storage().nbytes() == 64
    assert safetensors.torch.load_file(path)["w"].sum() == 16


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 4096])
def test_chunks_are_the_bytes_of_the_file(tmp_path, chunk_bytes):
    path = tmp_path / "model.safetensors"
    tensors = some_tensors()
    safetensors.torch.save_file(tensors, path)
    with CheckpointReader(path) as reader:
        for info in reader.header.tensors:
            pieces = [bytes(piece) for piece in reader.chunks(info, chunk_bytes=chunk_bytes)]
            assert b"".join(pieces) == bits(tensors[info.name])[2]
            assert all(len(piece) == chunk_bytes for piece in pieces[:-1])


def test_tensors_off_their_element_size_are_read(tmp_path):
    path = tmp_path / "model.safetensors"
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "b": {"dtype": "F64", "shape": [2], "data_offsets": [1, 17]},
        }
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\7" + struct.pack("<2d", 1.5, -2.0))
    with CheckpointReader(path) as reader:
        assert reader.read("b").tolist() == [1.5, -2.0]


@pytest.mark.parametrize(("dtype", "shape", "nbytes"), [("F4", [2, 4], 4), ("F6_E2M3", [4], 3)])
def test_a_dtype_that_torch_lacks_is_copied_but_not_read(tmp_path, dtype, shape, nbytes):
    path = tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(nbytes)))
    with CheckpointReader(path) as reader:
        assert b"".join(reader.chunks(reader.header.tensors[0])) == bytes(range(nbytes))
        with pytest.raises(CheckpointError, match=dtype) as refused:
            reader.read("w")
    assert refused.value.fault == "dtype-not-readable"


def test_a_bad_header_is_refused_and_the_file_closed(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"PK\3\4\x14\0\0\0\x08\x08")
    with pytest.raises(CheckpointError, match="zip"):
        CheckpointReader(path)


def test_a_missing_file_and_a_missing_tensor_raise_different_errors(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError):
        CheckpointReader(path)
    safetensors.torch.save_file({"w": torch.ones(1)}, path)
    with CheckpointReader(path) as reader, pytest.raises(KeyError):
        reader.read("v")


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\1\1\1")
    # Two writes within one tick of the clock would leave the same time.
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("change", [shrink, grow, overwrite])
def test_a_file_that_changes_is_refused(tmp_path, change):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.ones(100)}, path)
    with CheckpointReader(path) as reader:
        change(path)
        with pytest.raises(CheckpointError) as refused:
            reader.read("w")
        assert refused.value.fault == "file-changed"
        assert "model.safetensors changed while it was read" in refused.value.detail
        with pytest.raises(CheckpointError, match="changed"):
            list(reader.chunks(reader.header.tensors[0], chunk_bytes=16))


def test_a_file_replaced_by_rename_is_still_read(tmp_path):
    path, other = tmp_path / "model.safetensors", tmp_path / "other"
    safetensors.torch.save_file({"w": torch.ones(100)}, path)
    safetensors.torch.save_file({"w": torch.zeros(100)}, other)
    with CheckpointReader(path) as reader:
        other.replace(path)
        assert reader.read("w").sum() == 100


def test_threads_may_share_a_reader(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {f"w{at}": torch.full((64, 64), float(at)) for at in range(16)}
    safetensors.torch.save_file(tensors, path)
    wrong: list[str] = []

    def read_all() -> None:
        for info in reader.header.tensors:
            if not torch.equal(reader.read(info.name), tensors[info.name]):
                wrong.append(info.name)
            pieces = [bytes(piece) for piece in reader.chunks(info, chunk_bytes=100)]
            if b"".join(pieces) != tensors[info.name].numpy().tobytes():
                wrong.append(info.name)

    with CheckpointReader(path) as reader:
        threads = [threading.Thread(target=read_all) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_the_two_names_of_a_dtype_agree():
    assert all(dtype_name(torch_dtype(name)) == name for name in TORCH_DTYPES)
    with pytest.raises(CheckpointError, match="complex128") as refused:
        dtype_name(torch.complex128)
    assert refused.value.fault == "dtype-not-writable"
