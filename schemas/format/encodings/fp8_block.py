"""Floats of eight bits with a scale for each block of the weight, as DeepSeek and Qwen publish them."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from schemas.format.encodings.base import (
    SCALE,
    VALUES,
    WEIGHT,
    Encoded,
    Neighbours,
    register,
    tiles,
)
from schemas.format.encodings.quantization import FP8

if TYPE_CHECKING:
    from schemas.format.encodings.quantization import Quantization

NAME = "fp8_block"
# Despite the first name, the values are multiplied by it. Some publishers use the other names.
SCALES: tuple[str, ...] = ("weight_scale_inv", "scale", "qscale_weight")
# A scale of eight bits is a power of two, also where it is stored as an integer.
SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")


@register
class Fp8Block:
    """`X.weight` F8_E4M3 [m, n] and `X.weight_scale_inv` [⌈m/b⌉, ⌈n/c⌉]; the block [b, c] is the config's."""

    markers = frozenset(SCALES)

    def find(self, near: Neighbours, quantization: Quantization) -> Encoded | None:
        weight = near.get(WEIGHT, "F8_E4M3")
        if weight is None or len(weight.shape) != 2 or quantization.method != FP8:
            return None
        found = [scale for name in SCALES if (scale := near.get(name, *SCALE_DTYPES)) is not None]
        if len(found) != 1:
            return None
        scale, block = found[0], quantization.block
        if block is None and prod(scale.shape) == 1:
            block = weight.shape[0], weight.shape[1]
        if block is None or not _fits(scale.shape, weight.shape, block):
            return None
        return near.weight(NAME, weight.shape, {VALUES: weight, SCALE: scale}, tile=block)


def _fits(scale: tuple[int, ...], weight: tuple[int, ...], block: tuple[int, int]) -> bool:
    expected = tiles(weight, block)
    return scale == expected or (prod(scale) == 1 == prod(expected))
