"""The tensors of one file in columns, so that half a million of them are a few arrays and no objects."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from heapq import merge
from itertools import accumulate, chain
from typing import TYPE_CHECKING, overload

from schemas.format.tensor import DTYPE_BITS, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DTYPES = tuple(DTYPE_BITS)
DTYPE_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_BITS = tuple(DTYPE_BITS.values())
# Dtypes of which a tensor may hold codes of numbers, rather than numbers.
CODES = frozenset(DTYPE_CODES[dtype] for dtype in ("U8", "I8", "I32", "F8_E4M3", "F8_E5M2", "F4"))
# A sort keeps all other threads waiting.
_SORTED_AT_ONCE = 1 << 14


class TensorTable(Sequence[TensorInfo]):
    """Tensors in the order of their data; each is made when it is asked for.

    Names are UTF-8, one after another; those and the sizes of one tensor end at `name_ends` and `shape_ends`.
    """

    __slots__ = ("dtypes", "ends", "name_ends", "names", "shape_ends", "sizes")

    def __init__(self) -> None:
        self.names = bytearray()
        self.name_ends = array("I")
        self.dtypes = bytearray()
        self.sizes = array("q")
        self.shape_ends = array("I")
        self.ends = array("q")

    @classmethod
    def of(cls, tensors: Iterable[TensorInfo]) -> TensorTable:
        """Return these tensors as columns."""
        table = cls()
        for info in tensors:
            table.append(info.name, DTYPE_CODES[info.dtype], info.shape, info.end)
        return table

    def columns(self) -> tuple[memoryview, ...]:
        """Return the bytes of all columns, in this machine's order."""
        return tuple(memoryview(getattr(self, column)).cast("B") for column in self.__slots__)

    @classmethod
    def of_columns(cls, columns: Iterable[bytes | memoryview]) -> TensorTable:
        """Return the table with these columns, of which one is asked for at a time."""
        table = cls()
        for name, given in zip(cls.__slots__, columns, strict=True):
            column = getattr(table, name)
            setattr(table, name, bytearray(given) if isinstance(column, bytearray) else _array(column, given))
        return table

    def append(self, name: str, dtype: int, shape: Sequence[int], end: int) -> None:
        self.names += name.encode()
        self.name_ends.append(len(self.names))
        self.dtypes.append(dtype)
        self.sizes.extend(shape)
        self.shape_ends.append(len(self.sizes))
        self.ends.append(end)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int) -> TensorInfo: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[TensorInfo, ...]: ...
    def __getitem__(self, at: int | slice) -> TensorInfo | tuple[TensorInfo, ...]:
        places = range(len(self.ends))[at]
        return self._info(places) if isinstance(places, int) else tuple(map(self._info, places))

    def __iter__(self) -> Iterator[TensorInfo]:
        return map(self._info, range(len(self.ends)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorTable):
            return NotImplemented
        return all(getattr(self, column) == getattr(other, column) for column in self.__slots__)

    __hash__ = None  # type: ignore[assignment] # as of any sequence that may grow

    @property
    def data_bytes(self) -> int:
        """The bytes of all data, which the last tensor ends."""
        return self.ends[-1]

    @property
    def parameters(self) -> int:
        """The elements of all tensors together."""
        nbytes, start = [0] * len(DTYPES), 0
        for code, end in zip(self.dtypes, self.ends, strict=True):
            nbytes[code] += end - start
            start = end
        return sum(8 * each // bits for each, bits in zip(nbytes, _BITS, strict=True))

    @property
    def has_codes(self) -> bool:
        """Whether a tensor has a dtype that quantized weights are stored in."""
        return not CODES.isdisjoint(self.dtypes)

    def each_name(self) -> Iterator[str]:
        return map(self.name, range(len(self.ends)))

    def name(self, at: int) -> str:
        return self.names[self.name_ends[at - 1] if at else 0 : self.name_ends[at]].decode()

    def span(self, at: int) -> tuple[int, int]:
        """Return where the data of a tensor begin and end."""
        end = self.ends[at]
        return end - math.prod(self._shape(at)) * _BITS[self.dtypes[at]] // 8, end

    def _shape(self, at: int) -> tuple[int, ...]:
        return tuple(self.sizes[self.shape_ends[at - 1] if at else 0 : self.shape_ends[at]])

    def _info(self, at: int) -> TensorInfo:
        shape, dtype, end = self._shape(at), self.dtypes[at], self.ends[at]
        start = end - math.prod(shape) * _BITS[dtype] // 8
        return TensorInfo(self.name(at), DTYPES[dtype], shape, start, end)


class JoinedTensors(Sequence[TensorInfo]):
    """The tensors of several files, one file after another."""

    def __init__(self, tables: Iterable[TensorTable]) -> None:
        self._tables = tuple(tables)
        self._ends = tuple(accumulate(map(len, self._tables)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, at: int) -> TensorInfo: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[TensorInfo, ...]: ...
    def __getitem__(self, at: int | slice) -> TensorInfo | tuple[TensorInfo, ...]:
        places = range(len(self))[at]
        return self._info(places) if isinstance(places, int) else tuple(map(self._info, places))

    def __iter__(self) -> Iterator[TensorInfo]:
        return chain.from_iterable(self._tables)

    def _info(self, at: int) -> TensorInfo:
        number = bisect_right(self._ends, at)
        # Negative, and so counted from the end of the table.
        return self._tables[number][at - self._ends[number]]


def _array(kind: array[int], given: bytes | memoryview) -> array[int]:
    found = array(kind.typecode)
    found.frombytes(given)
    return found


class TableBuilder:
    """The tensors of a header as they are listed, each name once."""

    def __init__(self, max_tensors: int) -> None:
        self.table = TensorTable()
        self.names: set[str] = set()
        self._max_tensors = max_tensors
        # Whether each has begun where the one before it ended.
        self.is_gapless = True
        self._end = 0

    @property
    def is_full(self) -> bool:
        return len(self.names) >= self._max_tensors

    def add(self, name: str, dtype: int, shape: Sequence[int], start: int, end: int) -> None:
        self.names.add(name)
        self.table.append(name, dtype, shape, end)
        if start != self._end:
            self.is_gapless = False
        self._end = end

    def find(self, name: str) -> TensorInfo:
        """Return the tensor of this name, which is there."""
        return next(info for info in self.table if info.name == name)

    def in_file_order(self) -> TensorTable:
        """Return the tensors by their offsets; those of one place keep their order."""
        if self.is_gapless:
            return self.table
        span, count = self.table.span, len(self.table)
        parts = (range(at, min(at + _SORTED_AT_ONCE, count)) for at in range(0, count, _SORTED_AT_ONCE))
        places = merge(*(sorted(part, key=span) for part in parts), key=span)
        return TensorTable.of(map(self.table.__getitem__, places))
