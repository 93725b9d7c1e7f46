"""Members of a header and of an index as almost every writer writes them, read without decoding JSON.

What is unusual or wrong is left where it is, for `json_reader`, which takes several times as long.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from schemas.format.json_reader import LONG_CHARACTERS
from schemas.format.table import DTYPE_CODES
from schemas.format.tensor import (
    CONTROLS,
    DTYPE_BITS,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    MAX_SIZE,
    MAX_TENSORS,
    METADATA_KEY,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from schemas.format.json_reader import JsonReader
    from schemas.format.table import TableBuilder

_SPACE = r"[ \t\n\r]*+"
# A comma, and a name without escapes that cannot be too long, whatever its characters.
_NAME = rf'{_SPACE},{_SPACE}"([^"\\{CONTROLS}]{{1,{MAX_NAME_BYTES // 4}}}+)"{_SPACE}:{_SPACE}'
# An integer that cannot overflow.
_INTEGER = r"(?:0|[1-9][0-9]{0,17}+)"
_FIELD = (
    rf'(?:"dtype"{_SPACE}:{_SPACE}"([A-Z0-9_]++)"'
    rf'|"shape"{_SPACE}:{_SPACE}\[{_SPACE}((?:{_INTEGER}{_SPACE}(?:,{_SPACE}(?=[0-9])|(?=\])))*+)\]'
    rf'|"data_offsets"{_SPACE}:{_SPACE}\[{_SPACE}({_INTEGER}){_SPACE},{_SPACE}({_INTEGER}){_SPACE}\]'
    rf")"
)
# The keys of an entry may come in any order.
_tensor = re.compile(rf'{_NAME}\{{{_SPACE}(?:{_FIELD}{_SPACE}(?:,{_SPACE}(?=")|(?=\}}))){{3}}\}}').match
_pair = re.compile(rf'{_NAME}"([ !#-\[\]-~]*+)"').match
# Few kinds of tensors make up a checkpoint.
_KINDS_KEPT = 1024
# Eight sizes of eighteen digits, and some space.
_LONGEST_SHAPE = 200


def read_plain_tensors(reader: JsonReader, tensors: TableBuilder) -> None:
    """Read the tensors that follow the cursor, as long as each is plain, new and not one too many."""
    for found in _members(reader, _tensor):
        name, dtype, shape_text, start, end = found.groups()
        # One key twice leaves another one out.
        if dtype is None or shape_text is None or start is None or len(shape_text) > _LONGEST_SHAPE:
            return
        kind, first, last = _kind(dtype, shape_text), int(start), int(end)
        if kind is None or last - first != kind[2]:
            return
        if name in tensors.names or name == METADATA_KEY or tensors.is_full:
            return
        tensors.add(name, kind[0], kind[1], first, last)
        reader.position = found.end()


def read_plain_pairs(reader: JsonReader, shards: dict[str, str], known: Mapping[str, str]) -> None:
    """Read the entries of an index that follow, as long as each is plain, new and of a known file."""
    for found in _members(reader, _pair):
        name, shard = found.groups()
        if shard not in known or name in shards or len(shards) >= MAX_TENSORS:
            return
        shards[name] = known[shard]
        reader.position = found.end()


def _members(
    reader: JsonReader, match: Callable[[str, int], re.Match[str] | None]
) -> Iterator[re.Match[str]]:
    """Yield what matches at the cursor, which the caller moves behind it, or takes no more."""
    more = True
    while more:
        reader.fill(LONG_CHARACTERS)
        while found := match(reader.text, reader.position):
            # The other reader says where a value is too long.
            if found.end() - reader.position > LONG_CHARACTERS:
                return
            yield found
        more = reader.fill(LONG_CHARACTERS)


@lru_cache(maxsize=_KINDS_KEPT)
def _kind(dtype: str, shape_text: str) -> tuple[int, tuple[int, ...], int] | None:
    """Return the code of the dtype, the shape and the bytes; None where something is wrong with them."""
    bits = DTYPE_BITS.get(dtype, 0)
    shape = tuple(map(int, shape_text.split(","))) if shape_text else ()
    if not bits or len(shape) > MAX_DIMENSIONS:
        return None
    for size in shape:
        bits *= size
        if bits > MAX_SIZE:
            return None
    return None if bits % 8 else (DTYPE_CODES[dtype], shape, bits // 8)
