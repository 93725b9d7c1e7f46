"""What other formats begin with, so that a wrong file is called by its name."""

from __future__ import annotations

from os import SEEK_END
from typing import TYPE_CHECKING

from schemas.format.errors import CheckpointError
from schemas.format.header import LENGTH_BYTES, Header, check_extent, parse_tensors
from schemas.format.json_reader import JsonReader

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

_CONVERT = "convert it to safetensors first"
_DECOMPRESS = "decompress it first"
_NO_PICTURE = "send the checkpoint's .safetensors file instead"

_BINARY = (
    (b"PK\x03\x04", "it looks like a zip archive, such as a PyTorch .pt file", _CONVERT),
    (b"GGUF", "it looks like a GGUF file", _CONVERT),
    (b"\x89HDF\r\n\x1a\n", "it looks like an HDF5 file, such as a Keras .h5 file", _CONVERT),
    (b"\x1f\x8b", "it looks like gzip-compressed data", _DECOMPRESS),
    (b"\x28\xb5\x2f\xfd", "it looks like zstd-compressed data", _DECOMPRESS),
    (b"\xfd7zXZ\x00", "it looks like xz-compressed data", _DECOMPRESS),
    (b"BZh", "it looks like bzip2-compressed data", _DECOMPRESS),
    (b"7z\xbc\xaf\x27\x1c", "it looks like a 7z archive", _DECOMPRESS),
    (b"\x93NUMPY", "it looks like a NumPy .npy file", _CONVERT),
    (b"\x89PNG\r\n\x1a\n", "this is a picture (PNG)", _NO_PICTURE),
    (b"\xff\xd8\xff", "this is a picture (JPEG)", _NO_PICTURE),
    (b"GIF87a", "this is a picture (GIF)", _NO_PICTURE),
    (b"GIF89a", "this is a picture (GIF)", _NO_PICTURE),
    *(
        (bytes((0x80, protocol)), "it looks like a Python pickle, such as a PyTorch .bin file", _CONVERT)
        for protocol in range(2, 6)
    ),
)
# A header's length may begin with one of these characters, but is never eight characters of text.
_TEXT = (
    (
        b"version ",
        "it looks like a git-LFS pointer instead of the file it points to",
        "run `git lfs pull` and send the real file",
    ),
    (
        b"<",
        "it looks like an HTML or XML page, perhaps the error page of a download",
        "download the file again",
    ),
    (b"{", "it looks like a JSON text without the eight bytes of length before it", _CONVERT),
    (b"", "it looks like a text file", _CONVERT),
)
_PRINTABLE = frozenset(b"\t\n\r" + bytes(range(32, 127)))
# Faults that a file of another format shows as well.
_ALIKE = frozenset(
    {
        "big-endian-length",
        "header-length-overflow",
        "header-past-end",
        "header-too-large",
        "loose-json",
        "no-header",
        "not-an-object",
        "not-json",
        "not-utf8",
        "too-short",
    }
)


def identify_format(first: bytes, fault: CheckpointError) -> CheckpointError:
    """Return `fault`, or the fault of being another format if the first eight bytes look like one."""
    found = _hint(first) if fault.code in _ALIKE else None
    return CheckpointError("other-format", f"This is not safetensors: {found}.") if found else fault


def _hint(first: bytes) -> str | None:
    """Say what it is and what to do about it."""
    is_text = bool(first) and _PRINTABLE.issuperset(first)
    known = (*_BINARY, *_TEXT) if is_text else _BINARY
    found = ((told, advice) for start, told, advice in known if first.lstrip().startswith(start))
    return next((f"{told}; {advice}" for told, advice in found), None)


# 32 MB hold about 300 000 tensors; the reference reader takes 100 MB.
MAX_HEADER_BYTES = 32_000_000
_READ_BYTES = 1 << 20


class HeaderParser:
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
            raise identify_format(bytes(self._first), fault) from None
        if self.header is not None and self._seen_bytes > self.header.file_bytes:
            check_extent(self.header, file_bytes=self._seen_bytes, short_code="truncated")

    def finish(self, total_bytes: int) -> Header:
        """Return the header of a file that ended after `total_bytes`."""
        if self.header is None:
            raise identify_format(bytes(self._first), self._unfinished(total_bytes))
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
            JsonReader(opening.decode(), base=byte).check_opening()

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
        return read_open_header(file, max_header_bytes=max_header_bytes)


def read_open_header(file: FileIO, *, max_header_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Check the header of an open file, of which no more than the header is read."""
    scan = HeaderParser(max_header_bytes=max_header_bytes)
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
