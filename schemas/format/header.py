"""The header of a safetensors file: every check on it, once, in file order."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from schemas.format.errors import CheckpointError, pointer, quoted
from schemas.format.json_reader import JsonReader
from schemas.format.tensor import DTYPE_BITS, TensorInfo, alignment_bytes, check_name, parse_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

LENGTH_BYTES = 8
METADATA_KEY = "__metadata__"
MAX_TENSORS = 1_000_000


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file holds: its tensors in the order of their bytes, and where those bytes begin."""

    metadata: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    data_start: int
    file_bytes: int


def parse_header(
    raw: bytes | bytearray | memoryview, *, file_bytes: int, max_tensors: int = MAX_TENSORS
) -> Header:
    """Check the JSON between the length and the data of a file of `file_bytes`, and the data's extent."""
    header = parse_tensors(raw, max_tensors=max_tensors)
    check_extent(header, file_bytes=file_bytes, short_code="truncated")
    return header


def parse_tensors(raw: bytes | bytearray | memoryview, *, max_tensors: int = MAX_TENSORS) -> Header:
    """Check the same JSON for a file that is as long as it says."""
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError as error:
        byte = LENGTH_BYTES + error.start
        raise CheckpointError(
            "not-utf8", f"The header is not UTF-8: byte {byte} of the file does not belong to any character."
        ) from None
    metadata, tensors = _members(JsonReader(text, base=LENGTH_BYTES), max_tensors)
    ordered = _in_file_order(tensors)
    data_start = LENGTH_BYTES + len(raw)
    return Header(metadata, ordered, data_start, data_start + ordered[-1].end)


def check_extent(header: Header, *, file_bytes: int, short_code: str) -> None:
    """Check that the last tensor's last byte is the file's last byte."""
    if file_bytes == header.file_bytes:
        return
    last = header.tensors[-1]
    ends = f"The last tensor, {quoted(last.name)}, ends at byte {header.file_bytes} of the file"
    if file_bytes > header.file_bytes:
        raise CheckpointError(
            "trailing-data",
            f"{ends}, but more bytes follow. Nothing may stand behind the data: cut the file there.",
        )
    raise CheckpointError(
        short_code,
        f"{ends}, but the file has {file_bytes} bytes: "
        f"the file is short by {header.file_bytes - file_bytes} bytes. Send the whole file again.",
        pointer(last.name, "data_offsets"),
    )


def _members(scan: JsonReader, max_tensors: int) -> tuple[dict[str, str], Iterable[TensorInfo]]:
    scan.check_opening()
    metadata: dict[str, str] | None = None
    tensors: dict[str, TensorInfo] = {}
    for name in scan.members():
        if name == METADATA_KEY:
            if metadata is not None:
                raise scan.fault(
                    "duplicate-metadata", f"The header holds {METADATA_KEY} twice.", pointer(name)
                )
            metadata = _metadata(scan)
            continue
        check_name(name, scan)
        info = parse_entry(scan, name)
        if name in tensors:
            raise _repeated(tensors[name], info, scan)
        tensors[name] = info
        if len(tensors) > max_tensors:
            raise scan.fault("too-many-tensors", f"The header lists more than {max_tensors} tensors.")
    scan.end()
    if not tensors:
        raise CheckpointError("no-tensors", "The file holds no tensors, so there is nothing to compress.")
    return metadata or {}, tensors.values()


def _repeated(first: TensorInfo, second: TensorInfo, scan: JsonReader) -> CheckpointError:
    place = pointer(first.name)
    twice = f"The name {quoted(first.name)} stands twice"
    if (first.start, first.end) == (second.start, second.end):
        return scan.fault(
            "duplicate-name-same-data",
            f"{twice} for the same bytes {first.start} to {first.end}, "
            f"as {first.dtype} {list(first.shape)} and as {second.dtype} {list(second.shape)}.",
            place,
        )
    return scan.fault(
        "duplicate-name",
        f"{twice}, for bytes {first.start} to {first.end} and {second.start} to {second.end} of the data.",
        place,
    )


def _metadata(scan: JsonReader) -> dict[str, str]:
    if scan.peek() != "{":
        raise scan.fault(
            "metadata-not-object", f"{METADATA_KEY} must be an object of strings.", pointer(METADATA_KEY)
        )
    metadata: dict[str, str] = {}
    for key in scan.members():
        if key in metadata or scan.peek() != '"':
            raise _bad_metadata(scan, key, repeated=key in metadata)
        metadata[key] = value = scan.string()
        try:
            (key + value).encode()
        except UnicodeEncodeError:
            raise scan.fault(
                "lone-surrogate",
                f"{METADATA_KEY} entry {quoted(key)} holds half of a surrogate pair.",
                pointer(METADATA_KEY, key),
            ) from None
    return metadata


def _bad_metadata(scan: JsonReader, key: str, *, repeated: bool) -> CheckpointError:
    place = pointer(METADATA_KEY, key)
    if repeated:
        return scan.fault(
            "duplicate-metadata-key", f"{METADATA_KEY} holds the key {quoted(key)} twice.", place
        )
    if scan.peek() not in '{[-0123456789tfn"':
        return scan.unexpected("a quoted string")
    if key in {"shape", "data_offsets"}:
        return scan.fault("reserved-name", f"A tensor cannot be named {METADATA_KEY}. Rename it.", place)
    return scan.fault(
        "metadata-not-string", f"{METADATA_KEY} entry {quoted(key)} must be a string. Quote its value.", place
    )


def _in_file_order(tensors: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
    """Sort by offset, and check that the tensors cover the data from 0 without a hole or an overlap."""
    ordered = tuple(sorted(tensors, key=attrgetter("start", "end")))
    first = ordered[0]
    if first.start != 0:
        raise CheckpointError(
            "first-not-at-zero",
            f"The first tensor, {quoted(first.name)}, begins at byte {first.start} of the data instead of 0.",
            pointer(first.name, "data_offsets"),
        )
    for before, after in pairwise(ordered):
        if after.start != before.end:
            raise _misplaced(before, after)
    return ordered


def _misplaced(before: TensorInfo, after: TensorInfo) -> CheckpointError:
    kind, told = ("hole", "leaving a hole") if after.start > before.end else ("overlap", "so they overlap")
    return CheckpointError(
        kind,
        f"Tensor {quoted(after.name)} begins at byte {after.start} of the data, "
        f"but {quoted(before.name)} ends at {before.end}, {told}. Write the file anew.",
        pointer(after.name, "data_offsets"),
    )


# The reference reader refuses longer headers.
MAX_OUTPUT_HEADER_BYTES = 100_000_000
_PADDING_BYTES = 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written; whether a reader would accept its name is checked with the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def aligned_order(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Order tensors so that each begins at a multiple of its element's size.

    Readers that map the file would find other elements off their addresses, and some fail. An order that does
    so is kept; else the tensors are sorted by element size, largest first, which always does so, and stably.
    """
    given = tuple(specs)
    starts = accumulate((spec.nbytes for spec in given), initial=0)
    if all(start % alignment_bytes(spec.dtype) == 0 for spec, start in zip(given, starts, strict=False)):
        return given
    return tuple(sorted(given, key=lambda spec: -alignment_bytes(spec.dtype)))


def build_header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Build the header of a file that holds these tensors one after another.

    Spaces pad it so that the data begins at a multiple of eight bytes; empty metadata are left out.

    Raises
    ------
    CheckpointError
        With code ``duplicate-name`` if two tensors have one name, with ``output-header-too-large`` if the
        header exceeds 100 MB.
    UnicodeEncodeError
        If a name or the metadata hold half of a surrogate pair.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for spec in specs:
        if spec.name in entries:
            raise CheckpointError("duplicate-name", f'The output would hold two tensors named "{spec.name}".')
        end = start + spec.nbytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text.ljust(-(-len(text) // _PADDING_BYTES) * _PADDING_BYTES)
    if len(padded) > MAX_OUTPUT_HEADER_BYTES:
        raise CheckpointError(
            "output-header-too-large",
            f"The output's header takes {len(padded)} bytes, but readers accept {MAX_OUTPUT_HEADER_BYTES}.",
        )
    return padded
