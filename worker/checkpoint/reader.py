"""Reading a checkpoint one tensor at a time, and the dtypes and bytes of tensors."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import torch

from schemas.format.errors import CheckpointError
from schemas.format.header import MAX_HEADER_BYTES
from schemas.format.header_stream import read_open_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from schemas.format.tensor import TensorInfo

# Six-bit floats have no torch dtype, and torch packs two four-bit floats into one element of another shape.
TORCH_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "U16": torch.uint16,
        "I16": torch.int16,
        "U32": torch.uint32,
        "I32": torch.int32,
        "U64": torch.uint64,
        "I64": torch.int64,
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "C64": torch.complex64,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E8M0": torch.float8_e8m0fnu,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    }
)
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

CHUNK_BYTES = 4 << 20
# See `file_state`.
FileState = tuple[int, int, int, int]
# Linux transfers slightly less than 2 GiB by one call.
_MAX_READ_BYTES = 1 << 30


class CheckpointReader:
    """Reads the tensors of one safetensors file.

    The file is neither mapped nor read as a whole: `read` holds one tensor in memory, `chunks` a few MiB.
    Several threads may use one reader at the same time.

    Parameters
    ----------
    path : Path
        The file. It stays open until the reader is closed, so it may be renamed or removed meanwhile.
    state : tuple of int, optional
        What the file must be (`file_state`), as found when its bytes were checked.
    max_header_bytes : int
        The longest header to accept, in bytes.

    Attributes
    ----------
    header : Header
        The checked header.

    Raises
    ------
    CheckpointError
        If the header is malformed or does not agree with the file's size; with fault ``file-changed``, if
        the file is not in that state.
    OSError
        If the file cannot be opened.

    Examples
    --------
    >>> with CheckpointReader(path) as reader:  # doctest: +SKIP
    ...     weight = reader.read("encoder.layer.0.attention.self.query.weight")
    """

    def __init__(
        self, path: Path, *, state: FileState | None = None, max_header_bytes: int = MAX_HEADER_BYTES
    ) -> None:
        self._name = path.name
        self._file = path.open("rb", buffering=0)
        try:
            self._state = self._file_state() if state is None else state
            self._check_unchanged()
            self.header = read_open_header(self._file, max_header_bytes=max_header_bytes)
        except BaseException:
            self._file.close()
            raise
        self._infos = {info.name: info for info in self.header.tensors}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; tensors that were read stay valid."""
        self._file.close()

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor into new memory.

        Parameters
        ----------
        name : str
            The tensor's name.

        Returns
        -------
        Tensor, of the header's dtype and shape
            Contiguous and on the CPU; the caller may change it.

        Raises
        ------
        KeyError
            If the file holds no tensor `name`.
        CheckpointError
            With fault ``dtype-not-readable`` for a dtype that torch lacks, with ``file-changed`` if the file
            changed since it was opened.
        """
        return self.read_part(self._infos[name])

    def read_part(self, info: TensorInfo) -> torch.Tensor:
        """Read a tensor, or a part of one that is a tensor of its own, into new memory.

        Parameters
        ----------
        info : TensorInfo
            Dtype, shape and offsets within this file's data.

        Returns
        -------
        Tensor, of that dtype and shape
            Contiguous and on the CPU; the caller may change it.

        Raises
        ------
        CheckpointError
            As `read` does.
        """
        dtype = torch_dtype(info.dtype)
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        self._fill(raw.numpy().data, info, 0)
        self._check_unchanged()
        return raw.view(dtype).reshape(info.shape)

    def chunks(self, info: TensorInfo, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
        """Yield the bytes of one tensor in pieces.

        Parameters
        ----------
        info : TensorInfo
            The tensor's entry in this file's header.
        chunk_bytes : int
            The size of a piece, in bytes; the last may be smaller.

        Yields
        ------
        memoryview
            Valid until the next piece, which uses the same memory.

        Raises
        ------
        CheckpointError
            With fault ``file-changed``, if the file changed since it was opened.
        """
        buffer = memoryview(bytearray(min(chunk_bytes, info.nbytes)))
        for offset in range(0, info.nbytes, chunk_bytes):
            piece = buffer[: info.nbytes - offset]
            self._fill(piece, info, offset)
            yield piece
        self._check_unchanged()

    def _fill(self, target: memoryview, info: TensorInfo, offset: int) -> None:
        """Fill `target` with the bytes of a tensor from `offset` on."""
        at = self.header.data_start + info.start + offset
        while target:
            count = os.preadv(self._file.fileno(), [target[:_MAX_READ_BYTES]], at)
            if count == 0:
                raise self._changed(f"it ends at byte {at}")
            target = target[count:]
            at += count

    def _file_state(self) -> FileState:
        return file_state(self._file.fileno())

    def _check_unchanged(self) -> None:
        if self._file_state() != self._state:
            raise self._changed("it is another file, or its size or modification time differs")

    def _changed(self, how: str) -> CheckpointError:
        return CheckpointError(
            "file-changed",
            f"{self._name} changed while it was read: {how}. Store it again and do not write to it.",
        )


def file_state(descriptor: int) -> FileState:
    """Return what tells an open file from another, or from itself when it has been written to.

    Parameters
    ----------
    descriptor : int
        Of the open file.

    Returns
    -------
    tuple of int
        Its device, inode and size in bytes, and its modification time in nanoseconds.
    """
    state = os.fstat(descriptor)
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a safetensors dtype.

    Parameters
    ----------
    name : str
        A safetensors dtype, such as ``"BF16"``.

    Raises
    ------
    CheckpointError
        With fault ``dtype-not-readable``, if torch cannot hold such a tensor in its own shape.
    """
    if name not in TORCH_DTYPES:
        raise CheckpointError("dtype-not-readable", f"Tensors of dtype {name} can be copied, but not read.")
    return TORCH_DTYPES[name]


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a view of the memory of a tensor.

    Parameters
    ----------
    tensor : Tensor, of any shape
        Contiguous and on the CPU.
    """
    view: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return view


def dtype_name(dtype: torch.dtype) -> str:
    """Return the safetensors dtype of a torch dtype.

    Parameters
    ----------
    dtype : torch.dtype
        A torch dtype, such as ``torch.bfloat16``.

    Raises
    ------
    CheckpointError
        With fault ``dtype-not-writable``, if safetensors has no such dtype.
    """
    if dtype not in _NAMES:
        raise CheckpointError("dtype-not-writable", f"safetensors has no dtype for {dtype}.")
    return _NAMES[dtype]
