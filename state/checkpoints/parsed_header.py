"""Parsed headers, kept beside the stored files, so that no later request parses what a stranger wrote.

A kept header begins with the digest of its file, a version and two counts; what does not fit is parsed again.
"""

import json
import zlib
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from schemas.checkpoint import FileInfo
from schemas.format.errors import CheckpointError
from schemas.format.header import LENGTH_BYTES, Header
from schemas.format.header_stream import read_header
from schemas.format.table import TensorTable
from schemas.format.tensor import MAX_TENSORS
from state.errors import OutOfSpace
from state.files import write_atomic

# Grows with every change of `pack_header`, and of what a parser accepts.
VERSION = 3
_HEAD_BYTES = 64 + 4 + 12 + 12
# Of one checkpoint, however many files it has.
MAX_CHECKPOINT_HEADER_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class HeaderSize:
    """What a header, or all of a checkpoint's, cost to read."""

    tensors: int = 0
    nbytes: int = 0

    @classmethod
    def of(cls, header: Header) -> "HeaderSize":
        return cls(len(header.tensors), header.data_start - LENGTH_BYTES)

    def __add__(self, other: "HeaderSize") -> "HeaderSize":
        return HeaderSize(self.tensors + other.tensors, self.nbytes + other.nbytes)

    def check(self) -> None:
        """Refuse a checkpoint whose headers together are larger than any model needs."""
        if self.tensors > MAX_TENSORS:
            raise CheckpointError(
                "too-many-tensors",
                f"The checkpoint's files have {self.tensors} tensors together; at most "
                f"{MAX_TENSORS} are allowed. Store them as several checkpoints.",
            )
        if self.nbytes > MAX_CHECKPOINT_HEADER_BYTES:
            raise CheckpointError(
                "header-too-large",
                f"The headers of the checkpoint's files have {self.nbytes} bytes together; at most "
                f"{MAX_CHECKPOINT_HEADER_BYTES} are allowed. Store them as several checkpoints.",
            )


@dataclass(frozen=True, slots=True)
class PackedHeader:
    """A checked header in a few bytes, while its file arrives and beside it afterwards."""

    size: HeaderSize
    packed: bytes

    @classmethod
    def of(cls, header: Header) -> "PackedHeader":
        metadata = json.dumps(dict(header.metadata)).encode()
        pieces: tuple[bytes | memoryview, ...] = (metadata, *header.tensors.columns())
        parts = [zlib.compress(piece, level=1) for piece in pieces]
        lengths = json.dumps([len(part) for part in parts]).encode()
        return cls(HeaderSize.of(header), b"".join((lengths, b"\n", *parts)))

    def header(self) -> Header:
        """Return the header again; each part is unpacked alone, since all together take much memory.

        Raises ValueError or zlib.error if it is damaged.
        """
        end = self.packed.index(b"\n") + 1
        ends = list(accumulate(json.loads(self.packed[:end]), initial=end))
        packed = memoryview(self.packed)
        parts = (zlib.decompress(packed[begin:end]) for begin, end in pairwise(ends))
        metadata = json.loads(next(parts))
        tensors = TensorTable.of_columns(parts)
        data_start = LENGTH_BYTES + self.size.nbytes
        return Header(metadata, tensors, data_start, data_start + tensors.data_bytes)

    def keep(self, path: Path, sha256: str) -> None:
        """Write it beside the file with this digest."""
        write_atomic(path, _head(sha256, self.size) + self.packed)


def kept_path(folder: Path, name: str) -> Path:
    """Return where the header of a stored file is kept; no file name starts with a dot."""
    return folder / f".{name}.header"


def stored_header(folder: Path, info: FileInfo) -> Header:
    """Return the header of a stored file, parsed again only where it is not kept, or damaged."""
    with suppress(OSError, ValueError, zlib.error):
        raw = kept_path(folder, info.name).read_bytes()
        return PackedHeader(_size(raw[:_HEAD_BYTES], info), raw[_HEAD_BYTES:]).header()
    return _parsed_again(folder, info)


def stored_header_size(folder: Path, info: FileInfo) -> HeaderSize:
    """Return the size of the header of a stored file."""
    try:
        with kept_path(folder, info.name).open("rb") as file:
            return _size(file.read(_HEAD_BYTES), info)
    except (OSError, ValueError):
        return HeaderSize.of(_parsed_again(folder, info))


def _parsed_again(folder: Path, info: FileInfo) -> Header:
    header = read_header(folder / info.name)
    # Another process may do the same, or the disk be full or read-only; the next request tries again.
    with suppress(OSError, OutOfSpace):
        PackedHeader.of(header).keep(kept_path(folder, info.name), info.sha256)
    return header


def _head(sha256: str, size: HeaderSize) -> bytes:
    return f"{sha256:64}{VERSION:4}{size.tensors:12}{size.nbytes:12}".encode()


def _size(head: bytes, info: FileInfo) -> HeaderSize:
    """Parse the head of a kept header; it must be that of this file and version."""
    size = HeaderSize(int(head[68:80]), int(head[80:92]))
    if head != _head(info.sha256, size):
        raise ValueError("another file or version")
    return size
