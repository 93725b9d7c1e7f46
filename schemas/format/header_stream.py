"""Parse a header while the file arrives in chunks."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from os import SEEK_END
from typing import TYPE_CHECKING

from schemas.format.errors import CheckpointError
from schemas.format.foreign import identify_format
from schemas.format.header import LENGTH_BYTES, MAX_HEADER_BYTES, Header, check_extent, parse_chunks
from schemas.format.json_reader import JsonReader
from schemas.format.table import TensorTable

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

    from schemas.format.cursor import Chunk

_READ_BYTES = 1 << 20


class HeaderParser:
    """Takes a file in chunks of any size, keeps only its header, and raises an error as soon as it can."""

    def __init__(self, *, content_bytes: int | None = None, max_header_bytes: int = MAX_HEADER_BYTES) -> None:
        self.header: Header | None = None
        self._content_bytes = content_bytes
        self._max_header_bytes = max_header_bytes
        self._seen_bytes = 0
        self._first = bytearray()
        self._header_bytes = 0
        self._chunks: deque[Chunk] = deque()
        self._received_bytes = 0
        self._opened = False

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the file."""
        rest = memoryview(chunk)
        self._seen_bytes += len(rest)
        try:
            while self.header is None and rest:
                rest = rest[self._take(rest) :]
        except CheckpointError as error:
            raise identify_format(bytes(self._first), error) from None
        if self.header is not None and self._seen_bytes > self.header.file_bytes:
            check_extent(self.header, file_bytes=self._seen_bytes, short_fault="truncated")

    def finish(self, total_bytes: int) -> Header:
        """Return the header of a file that ended after `total_bytes`."""
        if self.header is None:
            raise identify_format(bytes(self._first), self._unfinished(total_bytes))
        check_extent(self.header, file_bytes=total_bytes, short_fault="truncated")
        return self.header

    def _take(self, rest: memoryview) -> int:
        """Consume a piece of the chunk, and return its length."""
        if len(self._first) < LENGTH_BYTES:
            piece = bytes(rest[: LENGTH_BYTES - len(self._first)])
            self._first += piece
            if len(self._first) == LENGTH_BYTES:
                self._read_length()
            return len(piece)
        piece = bytes(rest[: self._header_bytes - self._received_bytes])
        self._chunks.append(piece)
        self._received_bytes += len(piece)
        if not self._opened:
            self._check_opening(piece)
        if self._received_bytes == self._header_bytes:
            self._read_header()
        return len(piece)

    def _read_length(self) -> None:
        length = int.from_bytes(self._first, "little")
        if length == 0:
            raise CheckpointError(
                "empty-header", f"{_stated_length(length)}. The header must be a JSON object of tensors."
            )
        if length > self._max_header_bytes:
            raise self._too_large(length)
        if self._content_bytes is not None and LENGTH_BYTES + length > self._content_bytes:
            raise _truncated(length, self._content_bytes)
        self._header_bytes = length

    def _too_large(self, length: int) -> CheckpointError:
        limit = self._max_header_bytes
        if 0 < int.from_bytes(self._first, "big") <= limit:
            return CheckpointError(
                "big-endian-length",
                f"{_stated_length(length)}: it seems to be big-endian. Write it little-endian.",
            )
        if length > 2**63 - 1 - LENGTH_BYTES:
            return CheckpointError(
                "header-length-overflow", f"{_stated_length(length)}, more than any file can hold."
            )
        return CheckpointError("header-too-large", f"{_stated_length(length)}; at most {limit} are allowed.")

    def _check_opening(self, piece: bytes) -> None:
        """Refuse a header by its first character, before the rest has arrived."""
        opening = piece.lstrip(b" \t\n\r")[:1]
        self._opened = bool(opening)
        # Characters beyond ASCII are checked with the complete header.
        if opening and opening.isascii():
            byte = LENGTH_BYTES + self._received_bytes - len(piece.lstrip(b" \t\n\r"))
            JsonReader([opening.decode()], base=byte).check_opening()

    def forget_tensors(self) -> None:
        """Keep of the header only what the checks of the file's length need."""
        assert self.header is not None
        self.header = replace(self.header, metadata={}, tensors=TensorTable.of(self.header.tensors[-1:]))

    @property
    def header_bytes(self) -> int:
        """The length that the header should have; 0 until it is known."""
        return self._header_bytes

    def _read_header(self) -> None:
        self.header = parse_chunks(self._chunks)
        if self._content_bytes is not None:
            check_extent(self.header, file_bytes=self._content_bytes, short_fault="past-end")

    def _unfinished(self, total_bytes: int) -> CheckpointError:
        if total_bytes < LENGTH_BYTES:
            return CheckpointError(
                "too-short",
                f"The file has {total_bytes} bytes; safetensors begins with eight bytes of length.",
            )
        return _truncated(self._header_bytes, total_bytes)


def read_header(path: Path) -> Header:
    """Read and check the header of a file, and check that the file has the size that it states."""
    with path.open("rb", buffering=0) as file:
        return read_open_header(file)


def read_open_header(file: FileIO, *, max_header_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Do the same for an open file; only the header is read."""
    parser = HeaderParser(max_header_bytes=max_header_bytes)
    size_bytes = file.seek(0, SEEK_END)
    file.seek(0)
    while parser.header is None and (chunk := file.read(_READ_BYTES)):
        parser.feed(chunk)
    return parser.finish(size_bytes)


def _stated_length(header_bytes: int) -> str:
    return f"The first eight bytes say that the header has {header_bytes} bytes"


def _truncated(header_bytes: int, total_bytes: int) -> CheckpointError:
    stated = _stated_length(header_bytes)
    if total_bytes == LENGTH_BYTES:
        return CheckpointError("no-header", f"{stated}, but the file ends before it. Send the complete file.")
    return CheckpointError(
        "header-past-end", f"{stated}, but the file has only {total_bytes}. Send the complete file."
    )
