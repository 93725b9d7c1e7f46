"""Integers of a few bits, packed into words of 32: `pack-quantized` of compressed-tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.format.encodings.base import (
    DECODED_DTYPE,
    GROUP_INDEX,
    PACKED,
    SCALE,
    SHAPE,
    VALUES,
    ZERO_POINT,
    Encoded,
    Neighbours,
    register,
)
from schemas.format.encodings.quantization import COMPRESSED_TENSORS

if TYPE_CHECKING:
    from schemas.format.encodings.quantization import Quantization, WeightScheme
    from schemas.format.tensor import TensorInfo

NAME = "packed"
WORD_BITS = 32
MAX_BITS = 8


@dataclass(frozen=True, slots=True)
class Parts:
    """The tensors of one weight; some are there only for some schemes."""

    packed: TensorInfo
    scale: TensorInfo
    shape: TensorInfo
    zero_point: TensorInfo | None
    group_index: TensorInfo | None


@register
class Packed:
    """`X.weight_packed` I32 [m, ⌈n·bits/32⌉], `X.weight_scale` [m, n/g] and `X.weight_shape` I64 [2]."""

    markers = frozenset({PACKED})

    def find(self, near: Neighbours, quantization: Quantization) -> Encoded | None:
        packed, shape = near.get(PACKED, "I32"), near.get("weight_shape", "I64", "I32")
        scale = near.get("weight_scale", "F32", "F16", "BF16")
        if packed is None or scale is None or shape is None or quantization.method != COMPRESSED_TENSORS:
            return None
        if len(packed.shape) != 2 or len(scale.shape) != 2 or shape.shape != (2,):
            return None
        parts = Parts(
            packed, scale, shape, near.get("weight_zero_point", "I32"), near.get("weight_g_idx", "I32")
        )
        found = {each for scheme in quantization.schemes if (each := _fitting(scheme, parts)) is not None}
        if len(found) != 1:
            return None
        bits, columns, group = found.pop()
        return near.weight(
            NAME,
            (packed.shape[0], columns),
            {
                VALUES: packed,
                SCALE: scale,
                ZERO_POINT: parts.zero_point,
                GROUP_INDEX: parts.group_index,
                SHAPE: shape,
            },
            tile=(1, group),
            bits=bits,
            dtype="F16" if scale.dtype == "F16" else DECODED_DTYPE,
        )


def _fitting(scheme: WeightScheme, parts: Parts) -> tuple[int, int, int] | None:
    """Return bits, columns and group of a weight by a scheme; None if its tensors are not of this scheme."""
    if scheme.kind != "int" or scheme.format != "pack-quantized" or not 1 <= scheme.bits <= MAX_BITS:
        return None
    rows, words = parts.packed.shape
    groups = parts.scale.shape[1]
    if scheme.strategy == "group" and scheme.group_size is not None:
        columns, group = groups * scheme.group_size, scheme.group_size
    elif scheme.strategy == "channel" and groups == 1:
        # The worker compares with the values of `weight_shape`.
        columns = group = words * WORD_BITS // scheme.bits
    else:
        return None
    zeros = None if scheme.symmetric else (-(-rows * scheme.bits // WORD_BITS), groups)
    fits = (
        parts.scale.shape[0] == rows
        and -(-columns * scheme.bits // WORD_BITS) == words
        and (parts.zero_point.shape if parts.zero_point else None) == zeros
        and (parts.group_index is None or parts.group_index.shape == (columns,))
    )
    return (scheme.bits, columns, group) if fits else None
