"""Where each tensor of a file to be written will lie, and the header that says so."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from schemas.fault import CheckpointError
from schemas.tensor import DTYPE_BITS, alignment_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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


def header_json(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
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
