"""The header of a safetensors file: parse and check it, lay out tensors, and build it."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from schemas.format.cursor import Chunk, decode_all
from schemas.format.errors import CheckpointError, pointer, quoted
from schemas.format.json_reader import JsonReader
from schemas.format.plain import read_plain_tensors
from schemas.format.table import DTYPE_CODES, TableBuilder, TensorTable
from schemas.format.tensor import (
    DTYPE_BITS,
    MAX_TENSORS,
    METADATA_KEY,
    TensorInfo,
    alignment_bytes,
    check_name,
    parse_entry,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# The header begins with its own length, as a little-endian integer.
LENGTH_BYTES = 8
# 32 MB hold about 300 000 tensors; the reference reader takes 100 MB. None is written that is not read.
MAX_HEADER_BYTES = 32_000_000
# Writers of safetensors files have some; the largest known has a few hundred.
MAX_METADATA_ENTRIES = 10_000
_half_a_pair = re.compile("[\ud800-\udfff]").search


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: the tensors in the order of their data, and where the data section begins."""

    metadata: Mapping[str, str]
    tensors: TensorTable
    data_start: int
    file_bytes: int


def parse_header(
    raw: bytes | bytearray | memoryview, *, file_bytes: int, max_tensors: int = MAX_TENSORS
) -> Header:
    """Check the header of a file of `file_bytes`, given its JSON, and the size of the file."""
    header = parse_tensors(raw, max_tensors=max_tensors)
    check_extent(header, file_bytes=file_bytes, short_fault="truncated")
    return header


def parse_tensors(raw: bytes | bytearray | memoryview, *, max_tensors: int = MAX_TENSORS) -> Header:
    """Check the JSON of a header alone; `file_bytes` of the result is what the file should have."""
    return parse_chunks(deque([raw]), max_tensors=max_tensors)


def parse_chunks(chunks: deque[Chunk], *, max_tensors: int = MAX_TENSORS) -> Header:
    """Do the same for a header in chunks, each of which is taken out once it has been read."""
    data_start = LENGTH_BYTES + sum(map(len, chunks))
    reader = JsonReader(decode_all(chunks, base=LENGTH_BYTES, subject="The header"), base=LENGTH_BYTES)
    metadata, tensors = _members(reader, max_tensors)
    return Header(metadata, tensors, data_start, data_start + tensors.data_bytes)


def check_extent(header: Header, *, file_bytes: int, short_fault: str) -> None:
    """Check that the file ends with the last tensor; `short_fault` is the fault of one that is shorter."""
    if file_bytes == header.file_bytes:
        return
    last = header.tensors[-1]
    ends = f"The last tensor, {quoted(last.name)}, ends at byte {header.file_bytes} of the file"
    if file_bytes > header.file_bytes:
        raise CheckpointError(
            "trailing-data",
            f"{ends}, but more bytes follow. Nothing may follow the data: truncate the file there.",
        )
    raise CheckpointError(
        short_fault,
        f"{ends}, but the file has {file_bytes} bytes: "
        f"{header.file_bytes - file_bytes} bytes are missing. Send the complete file again.",
        pointer(last.name, "data_offsets"),
    )


def _members(reader: JsonReader, max_tensors: int) -> tuple[dict[str, str], TensorTable]:
    """Read all members of a header; the tensors are sorted by their offsets."""
    reader.check_opening()
    metadata: dict[str, str] | None = None
    tensors = TableBuilder(max_tensors)
    for name in reader.members():
        if name == METADATA_KEY:
            if metadata is not None:
                raise reader.error(
                    "duplicate-metadata", f"The header has {METADATA_KEY} twice.", pointer(name)
                )
            metadata = _metadata(reader)
        else:
            check_name(name, reader)
            info = parse_entry(reader, name)
            if name in tensors.names:
                raise _repeated(tensors.find(name), info, reader)
            if tensors.is_full:
                raise reader.error("too-many-tensors", f"The header lists more than {max_tensors} tensors.")
            tensors.add(name, DTYPE_CODES[info.dtype], info.shape, info.start, info.end)
        read_plain_tensors(reader, tensors)
    reader.end()
    if not tensors.names:
        raise CheckpointError("no-tensors", "The file has no tensors, so there is nothing to compress.")
    ordered = tensors.in_file_order()
    if not tensors.is_gapless:
        _check_order(ordered)
    return metadata or {}, ordered


def _repeated(first: TensorInfo, second: TensorInfo, reader: JsonReader) -> CheckpointError:
    place = pointer(first.name)
    twice = f"The name {quoted(first.name)} appears twice"
    if (first.start, first.end) == (second.start, second.end):
        return reader.error(
            "duplicate-name-same-data",
            f"{twice}, for the same bytes {first.start} to {first.end}, "
            f"as {first.dtype} {list(first.shape)} and as {second.dtype} {list(second.shape)}.",
            place,
        )
    return reader.error(
        "duplicate-name",
        f"{twice}, for bytes {first.start} to {first.end} and {second.start} to {second.end} of the data.",
        place,
    )


def _metadata(reader: JsonReader) -> dict[str, str]:
    # Null means the same as no metadata, as it does to the reference reader.
    if reader.peek() == "n" and reader.value() is None:
        return {}
    if reader.peek() != "{":
        raise reader.error(
            "metadata-not-object", f"{METADATA_KEY} must be an object of strings.", pointer(METADATA_KEY)
        )
    metadata: dict[str, str] = {}
    for key in reader.members():
        if key in metadata or reader.peek() != '"':
            raise _bad_metadata(reader, key, repeated=key in metadata)
        metadata[key] = value = reader.string()
        if len(metadata) > MAX_METADATA_ENTRIES:
            raise reader.error(
                "too-many-metadata",
                f"{METADATA_KEY} has more than {MAX_METADATA_ENTRIES} entries; leave most of them out.",
                pointer(METADATA_KEY),
            )
        # Without a copy, since each may be long.
        if _half_a_pair(key) or _half_a_pair(value):
            raise reader.error(
                "lone-surrogate",
                f"{METADATA_KEY} entry {quoted(key)} contains half of a surrogate pair.",
                pointer(METADATA_KEY, key),
            )
    return metadata


def _bad_metadata(reader: JsonReader, key: str, *, repeated: bool) -> CheckpointError:
    place = pointer(METADATA_KEY, key)
    if repeated:
        return reader.error(
            "duplicate-metadata-key", f"{METADATA_KEY} has the key {quoted(key)} twice.", place
        )
    if reader.peek() not in '{[-0123456789tfn"':
        return reader.unexpected("a quoted string")
    if key in {"shape", "data_offsets"}:
        return reader.error("reserved-name", f"A tensor cannot be named {METADATA_KEY}. Rename it.", place)
    return reader.error(
        "metadata-not-string", f"{METADATA_KEY} entry {quoted(key)} must be a string. Quote its value.", place
    )


def _check_order(tensors: TensorTable) -> None:
    """Check that sorted tensors fill the data section without a gap or an overlap."""
    expected = 0
    for at in range(len(tensors)):
        start, end = tensors.span(at)
        if start != expected:
            raise _misplaced(tensors[at - 1], tensors[at]) if at else _not_at_zero(tensors[0])
        expected = end


def _not_at_zero(first: TensorInfo) -> CheckpointError:
    return CheckpointError(
        "first-not-at-zero",
        f"The first tensor, {quoted(first.name)}, begins at byte {first.start} of the data instead of 0.",
        pointer(first.name, "data_offsets"),
    )


def _misplaced(before: TensorInfo, after: TensorInfo) -> CheckpointError:
    is_hole = after.start > before.end
    return CheckpointError(
        "hole" if is_hole else "overlap",
        f"Tensor {quoted(after.name)} begins at byte {after.start} of the data, "
        f"but {quoted(before.name)} ends at {before.end}, "
        f"{'which leaves a gap' if is_hole else 'so they overlap'}. Write the file again.",
        pointer(after.name, "data_offsets"),
    )


_PADDING_BYTES = 8


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written; its name is checked when the header is built and read back."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    @property
    def alignment(self) -> int:
        return alignment_bytes(self.dtype)


class Sized(Protocol):
    """What the order of a file's tensors depends on, in bytes."""

    @property
    def nbytes(self) -> int: ...
    @property
    def alignment(self) -> int: ...


T = TypeVar("T", bound=Sized)


def aligned_order(tensors: Iterable[T]) -> tuple[T, ...]:
    """Order tensors so that each begins at a multiple of its element's size.

    Some readers map the file and fail on unaligned elements. An order that is aligned already is kept. Any
    other is sorted by element size, largest first, which always aligns; the sort is stable.
    """
    given = tuple(tensors)
    starts = accumulate((tensor.nbytes for tensor in given), initial=0)
    if all(start % tensor.alignment == 0 for tensor, start in zip(given, starts, strict=False)):
        return given
    return tuple(sorted(given, key=lambda tensor: -tensor.alignment))


def build_header(tensors: Sequence[NewTensor], metadata: Mapping[str, str]) -> bytes:
    """Build the header of a file that holds these tensors one after another.

    Spaces pad it so that the data begin at a multiple of eight bytes. Empty metadata are left out.

    Raises
    ------
    CheckpointError
        With fault ``duplicate-name`` if two tensors have one name, with ``output-header-too-large`` if the
        header exceeds what is read.
    UnicodeEncodeError
        If a name or the metadata contain half of a surrogate pair.
    """
    entries: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    start = 0
    for tensor in tensors:
        if tensor.name in entries:
            raise CheckpointError(
                "duplicate-name", f"The output would have two tensors named {quoted(tensor.name)}."
            )
        end = start + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padded = padded_bytes(len(text))
    if padded > MAX_HEADER_BYTES:
        raise CheckpointError(
            "output-header-too-large",
            f"The output's header takes {padded} bytes, but at most {MAX_HEADER_BYTES} are read.",
        )
    return text.ljust(padded)


def padded_bytes(text_bytes: int) -> int:
    """Return the length of a header with this text."""
    return -(-text_bytes // _PADDING_BYTES) * _PADDING_BYTES
