"""The table of decoders, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from schemas.format.encodings import Encoded

Parts = Mapping[str, torch.Tensor]
Decoder = Callable[["Encoded", Parts], torch.Tensor]
DECODERS: dict[str, Decoder] = {}
# The exponent of a scale of eight bits is stored with this added.
E8M0_BIAS = 127
# Unpacked at a time, since indices take several times the bytes of a value.
BLOCK_ELEMENTS = 1 << 20


def register(*names: str) -> Callable[[Decoder], Decoder]:
    """Register the decoder of encodings, by their names in `schemas.format.encodings`."""

    def add(decoder: Decoder) -> Decoder:
        DECODERS.update(dict.fromkeys(names, decoder))
        return decoder

    return add


def decode(weight: Encoded, parts: Parts) -> torch.Tensor:
    """Return a quantized weight as numbers.

    Parameters
    ----------
    weight : Encoded
        How it is stored.
    parts : mapping of str to Tensor
        Its tensors, by what they are.

    Returns
    -------
    Tensor [m, n]
        In a floating dtype that holds the products of values and scales as the encoding defines them.
    """
    return DECODERS[weight.encoding](weight, parts)


def as_factors(scale: torch.Tensor) -> torch.Tensor:
    """Return scales as float32, also those that are exponents of two, stored as integers."""
    if scale.dtype is torch.uint8:
        return (scale.to(torch.float32) - E8M0_BIAS).exp2()
    return scale.to(torch.float32)


def scaled_tiles(values: torch.Tensor, scale: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    """Multiply each tile of a matrix by its scale, in place.

    Parameters
    ----------
    values : Tensor [m, n]
        Overwritten.
    scale : Tensor [⌈m/r⌉, ⌈n/c⌉]
        In the dtype of the values.
    tile : pair of int
        Rows r and columns c that share a scale; those at the end may be fewer.

    Returns
    -------
    Tensor [m, n]
        The values.
    """
    rows, columns = tile
    if rows == 1 and values.shape[1] % columns == 0:
        values.view(values.shape[0], -1, columns).mul_(scale.unsqueeze(-1))
        return values
    per_column = scale.repeat_interleave(columns, dim=1)[:, : values.shape[1]]  # [⌈m/r⌉, n]
    if rows == 1:
        return values.mul_(per_column)
    for number, row in enumerate(per_column):
        values[number * rows : (number + 1) * rows].mul_(row)
    return values


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of rows that have few enough elements to be unpacked together."""
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, start + step)
