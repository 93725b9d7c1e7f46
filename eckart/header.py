"""Safetensors files, read and written a tensor at a time, without a library."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import IO, TYPE_CHECKING, Any

from eckart.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

LENGTH_BYTES = 8
# The format's limit. The service has a lower one and refuses longer headers itself.
FORMAT_MAX_HEADER_BYTES = 100_000_000
BLOCK_BYTES = 1 << 20
METADATA = "__metadata__"
# Torch holds two values of this dtype in one element.
PACKED = "F4"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: where its bytes begin and end."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """The number of bytes."""
        return self.end - self.start

    @property
    def loaded_shape(self) -> tuple[int, ...]:
        """The shape that torch gives it."""
        if self.dtype == PACKED and self.shape:
            return (*self.shape[:-1], self.shape[-1] // 2)
        return self.shape


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a file in the order of their bytes, and its metadata."""

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def element_bytes(self) -> int:
        """The bytes of an element, at least one."""
        return max(self.size_bytes // max(prod(self.shape), 1), 1)


def header_bytes(path: Path) -> bytes:
    """Read the first 8 + N bytes of a safetensors file."""
    with path.open("rb") as stream:
        length = stream.read(LENGTH_BYTES)
        size_bytes = int.from_bytes(length, "little")
        header = stream.read(size_bytes) if size_bytes <= FORMAT_MAX_HEADER_BYTES else b""
    if len(length) < LENGTH_BYTES or len(header) != size_bytes:
        raise InputError(f"{path} is not a safetensors file: it does not begin with a header")
    _check_size(path, header)
    return length + header


def read_header(path: Path) -> Header:
    """Read what a file holds."""
    raw = header_bytes(path)
    try:
        document = json.loads(raw[LENGTH_BYTES:])
        metadata = document.pop(METADATA, None) or {}
        tensors = [_tensor(name, entry, len(raw)) for name, entry in document.items()]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a safetensors file: its header cannot be read ({error})") from error
    return Header(tuple(sorted(tensors, key=lambda tensor: (tensor.start, tensor.end))), metadata)


def build_header(tensors: Sequence[NewTensor], metadata: Mapping[str, str]) -> bytes:
    """Build the first bytes of a file that holds these tensors one after another."""
    document: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    start = 0
    for tensor in tensors:
        end = start + tensor.size_bytes
        document[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def aligned(tensors: Iterable[NewTensor]) -> list[NewTensor]:
    """Keep the order where each tensor begins at a multiple of its element's size, else sort by that size."""
    given = list(tensors)
    start = 0
    for tensor in given:
        if start % tensor.element_bytes:
            return sorted(given, key=lambda tensor: -tensor.element_bytes)
        start += tensor.size_bytes
    return given


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give the name of a part to write, which takes the place of the file once it is whole."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def copy_bytes(tensor: StoredTensor, source: IO[bytes], target: IO[bytes]) -> None:
    """Copy a tensor's bytes from an open file to another."""
    source.seek(tensor.start)
    left = tensor.size_bytes
    while left:
        block = source.read(min(left, BLOCK_BYTES))
        if not block:
            raise InputError(f"{tensor.name} is cut short; fetch the complete file")
        target.write(block)
        left -= len(block)


def _tensor(name: str, entry: Mapping[str, Any], data_start: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    return StoredTensor(name, str(entry["dtype"]), shape, data_start + int(start), data_start + int(end))


def _check_size(path: Path, header: bytes) -> None:
    """Refuse a file that is shorter or longer than its header says, before anything is uploaded."""
    try:
        entries = json.loads(header)
        data_bytes = max(entries[name]["data_offsets"][1] for name in entries if name != METADATA)
        surplus_bytes = path.stat().st_size - LENGTH_BYTES - len(header) - int(data_bytes)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return  # The service says what is wrong with the header.
    if surplus_bytes < 0:
        raise InputError(f"{path} is cut short: {-surplus_bytes} bytes are missing; fetch the complete file")
    if surplus_bytes > 0:
        raise InputError(f"{path} has {surplus_bytes} bytes after its data; cut the file there")
