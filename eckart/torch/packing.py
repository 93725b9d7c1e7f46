"""Integers of three or four bits in words of 32 bits, as compressed-tensors stores them."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

WORD_BITS = 32
# Where integers of three bits begin in three bytes, which hold eight of them.
STARTS = range(0, 24, 3)


def packed_widths(columns: int, bits: int) -> dict[int, bool]:
    """Map the numbers of words that a row may take to whether it has no gaps.

    Newer releases of compressed-tensors let an integer begin in one word and end in the next; older ones put
    as many into a word as fit. For four bits both are the same. For three bits they take other widths, unless
    the columns are few and no multiple of 32.
    """
    return {-(-columns // (WORD_BITS // bits)): False, -(-columns * bits // WORD_BITS): True}


def unpacked(words: Tensor, bits: int, shape: tuple[int, int]) -> Tensor:
    """Return the signed integers of words as int8, of this shape.

    All sizes come from the shape and not from the words, so that a trace holds them as constants.
    """
    rows, columns = shape
    if bits == 4:
        stored = _bytes(words)
        numbers = [stored & 15, stored >> 4]
    elif packed_widths(columns, bits)[int(words.shape[1])]:
        numbers = _without_gaps(words, rows)
    else:
        numbers = [((words >> start) & 7).to(torch.uint8) for start in range(0, WORD_BITS - bits + 1, bits)]
    signed = torch.stack(numbers, -1).view(torch.int8).sub_(2 ** (bits - 1))
    return signed.view(rows, -1)[:, :columns]


def _bytes(words: Tensor) -> Tensor:
    """Return the bytes of words, the lowest first."""
    found = words.contiguous().view(torch.uint8)
    if sys.byteorder == "big" and words.device.type == "cpu":
        return found.view(words.shape[0], -1, 4).flip(-1).flatten(1)
    return found


def _without_gaps(words: Tensor, rows: int) -> list[Tensor]:
    """Return eight integers of three bits from each three bytes; some of them lie in two bytes."""
    padded = torch.nn.functional.pad(words, (0, -int(words.shape[1]) % 3))
    parts = _bytes(padded).view(rows, -1, 3).unbind(-1)
    found = []
    for start in STARTS:
        number, shift = divmod(start, 8)
        low = parts[number] >> shift
        if shift > 5:
            low = low | (parts[number + 1] << (8 - shift))
        found.append(low & 7)
    return found
