"""Floats of eight bits with one scale for each row, or one for all, in three dialects."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from schemas.format.encodings.base import (
    DECODED_DTYPE,
    INPUT_SCALES,
    SCALE,
    VALUES,
    WEIGHT,
    Encoded,
    Neighbours,
    register,
    tiles,
)
from schemas.format.encodings.quantization import COMPRESSED_TENSORS, MODELOPT

if TYPE_CHECKING:
    from schemas.format.encodings.quantization import Quantization, WeightScheme
    from schemas.format.tensor import TensorInfo

NAME = "fp8_scaled"
SCALE_DTYPES = ("F32", "F16", "BF16")
# ComfyUI writes the first name, and more lately the second, with a tensor or metadata that name the format.
OLD_COMFY, USUAL = "scale_weight", "weight_scale"
COMFY_MARK = "comfy_quant"
FP8_FORMATS = frozenset({"float8_e4m3fn", "float8_e5m2"})


@register
class Fp8Scaled:
    """`X.weight` F8 [m, n] times `X.weight_scale` [m, 1] or [1], or in blocks where a scheme says so."""

    markers = frozenset({OLD_COMFY, USUAL})

    def find(self, near: Neighbours, quantization: Quantization) -> Encoded | None:
        weight = near.get(WEIGHT, "F8_E4M3", "F8_E5M2")
        scale = near.get(OLD_COMFY, *SCALE_DTYPES) or near.get(USUAL, *SCALE_DTYPES)
        if weight is None or scale is None or len(weight.shape) != 2:
            return None
        tile = _tile(near, weight, scale, quantization)
        if tile is None:
            return None
        return near.weight(
            NAME,
            weight.shape,
            {VALUES: weight, SCALE: scale},
            tile=tile,
            dtype="F16" if scale.dtype == "F16" else DECODED_DTYPE,
            unused=(*INPUT_SCALES, COMFY_MARK),
        )


def _tile(
    near: Neighbours, weight: TensorInfo, scale: TensorInfo, quantization: Quantization
) -> tuple[int, int] | None:
    """Return what shares a scale, if the dialect is known and allows it."""
    of_all = (weight.shape[0], weight.shape[1]) if prod(scale.shape) == 1 else None
    if OLD_COMFY in near.below or COMFY_MARK in near.below:
        return of_all
    if quantization.formats.get(near.module) in FP8_FORMATS:
        return of_all
    if quantization.method == MODELOPT:
        return of_all if quantization.algorithm == "FP8" else None
    if quantization.method != COMPRESSED_TENSORS or weight.dtype != "F8_E4M3":
        return None
    fitting = {_tile_of(scheme, weight.shape, scale.shape) for scheme in quantization.schemes} - {None}
    return fitting.pop() if len(fitting) == 1 else None


def _tile_of(scheme: WeightScheme, weight: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
    """Return what shares a scale by a scheme; None if the tensors are not of this scheme."""
    if (scheme.kind, scheme.bits, scheme.symmetric) != ("float", 8, True):
        return None
    rows, columns = weight
    tile = {"tensor": (rows, columns), "channel": (1, columns), "block": scheme.block}.get(scheme.strategy)
    if tile is None:
        return None
    expected = tiles(weight, tile)
    is_flat = scheme.strategy != "block" and scale in {(), expected[:1]}
    return tile if scale == expected or (is_flat and prod(scale) == prod(expected)) else None
