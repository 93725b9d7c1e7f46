"""The frame of a safetensors file, read as it streams in: eight bytes of length, the header, the data."""

from __future__ import annotations

from os import SEEK_END
from typing import TYPE_CHECKING

from schemas.fault import CheckpointError
from schemas.header import LENGTH_BYTES, Header, check_extent, parse_tensors
from schemas.jsonscan import JsonScan
from schemas.signature import recognised

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

# 32 MB hold about 300 000 tensors; the reference reader takes 100 MB.
MAX_HEADER_BYTES = 32_000_000
_READ_BYTES = 1 << 20


class HeaderScan:
    """Takes a file in pieces of any size, keeps its header alone, and raises a fault once it is certain."""

    def __init__(self, *, content_bytes: int | None = None, max_header_bytes: int = MAX_HEADER_BYTES) -> None:
        self.header: Header | None = None
        self._content_bytes = content_bytes
        self._max_header_bytes = max_header_bytes
        self._seen_bytes = 0
        self._first = bytearray()
        self._header_bytes = 0
        self._header_json = bytearray()
        self._opened = False

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the file."""
        rest = memoryview(chunk)
        self._seen_bytes += len(rest)
        try:
            while self.header is None and rest:
                rest = rest[self._take(rest) :]
        except CheckpointError as fault:
            raise recognised(bytes(self._first), fault) from None
        if self.header is not None and self._seen_bytes > self.header.file_bytes:
            check_extent(self.header, file_bytes=self._seen_bytes, short_code="truncated")

    def finish(self, total_bytes: int) -> Header:
        """Return the header of a file that ended after `total_bytes`."""
        if self.header is None:
            raise recognised(bytes(self._first), self._unfinished(total_bytes))
        check_extent(self.header, file_bytes=total_bytes, short_code="truncated")
        return self.header

    def _take(self, rest: memoryview) -> int:
        if len(self._first) < LENGTH_BYTES:
            piece = bytes(rest[: LENGTH_BYTES - len(self._first)])
            self._first += piece
            if len(self._first) == LENGTH_BYTES:
                self._read_length()
            return len(piece)
        piece = bytes(rest[: self._header_bytes - len(self._header_json)])
        self._header_json += piece
        if not self._opened:
            self._check_opening(piece)
        if len(self._header_json) == self._header_bytes:
            self._read_header()
        return len(piece)

    def _read_length(self) -> None:
        length = int.from_bytes(self._first, "little")
        says = _says(length)
        if length == 0:
            raise CheckpointError("empty-header", f"{says}. It must be a JSON object of tensors.")
        if length > self._max_header_bytes:
            raise self._too_large(length)
        if self._content_bytes is not None and LENGTH_BYTES + length > self._content_bytes:
            raise _cut(length, self._content_bytes)
        self._header_bytes = length

    def _too_large(self, length: int) -> CheckpointError:
        limit = self._max_header_bytes
        if 0 < int.from_bytes(self._first, "big") <= limit:
            return CheckpointError(
                "big-endian-length", f"{_says(length)}: it seems to be big-endian. Write it little-endian."
            )
        if length > 2**63 - 1 - LENGTH_BYTES:
            return CheckpointError("header-length-overflow", f"{_says(length)}, more than any file can hold.")
        return CheckpointError("header-too-large", f"{_says(length)}; at most {limit} are allowed.")

    def _check_opening(self, piece: bytes) -> None:
        """Refuse what cannot become a header by its first character, before the rest has come."""
        opening = piece.lstrip(b" \t\n\r")[:1]
        self._opened = bool(opening)
        # Characters beyond ASCII are judged with the whole header.
        if opening and opening.isascii():
            byte = LENGTH_BYTES + len(self._header_json) - len(piece.lstrip(b" \t\n\r"))
            JsonScan(opening.decode(), base=byte).check_opening()

    def _read_header(self) -> None:
        self.header = parse_tensors(self._header_json)
        self._header_json = bytearray()
        if self._content_bytes is not None:
            check_extent(self.header, file_bytes=self._content_bytes, short_code="past-end")

    def _unfinished(self, total_bytes: int) -> CheckpointError:
        if total_bytes < LENGTH_BYTES:
            return CheckpointError(
                "too-short",
                f"The file has {total_bytes} bytes; safetensors begins with eight bytes of length.",
            )
        return _cut(self._header_bytes, total_bytes)


def read_header(path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Check the header of the file at `path`, and that it agrees with the file's size."""
    with path.open("rb", buffering=0) as file:
        return scan_file(file, max_header_bytes=max_header_bytes)


def scan_file(file: FileIO, *, max_header_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Check the header of an open file, of which no more than the header is read."""
    scan = HeaderScan(max_header_bytes=max_header_bytes)
    size_bytes = file.seek(0, SEEK_END)
    file.seek(0)
    while scan.header is None and (chunk := file.read(_READ_BYTES)):
        scan.feed(chunk)
    return scan.finish(size_bytes)


def _says(header_bytes: int) -> str:
    return f"The first eight bytes give the header {header_bytes} bytes"


def _cut(header_bytes: int, total_bytes: int) -> CheckpointError:
    if total_bytes == LENGTH_BYTES:
        return CheckpointError(
            "no-header", f"{_says(header_bytes)}, but the file ends before it. Send it whole."
        )
    return CheckpointError(
        "header-past-end", f"{_says(header_bytes)}, but the whole file has {total_bytes}. Send it whole."
    )
