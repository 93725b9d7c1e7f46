"""Floats of four bits with a scale for each sixteen and one for all, in two conventions."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from schemas.format.encodings.base import (
    GLOBAL_SCALE,
    PACKED,
    SCALE,
    VALUES,
    WEIGHT,
    Encoded,
    Neighbours,
    register,
)
from schemas.format.encodings.quantization import COMPRESSED_TENSORS, MODELOPT

if TYPE_CHECKING:
    from schemas.format.encodings.quantization import Quantization
    from schemas.format.tensor import TensorInfo

GROUP = 16
NVFP4, DIVIDED, MULTIPLIED = "NVFP4", "nvfp4_divided", "nvfp4_multiplied"
FORMAT = "nvfp4-pack-quantized"


@register
class CompressedNvfp4:
    """`X.weight_packed` U8 [m, n/2], `X.weight_scale` F8_E4M3 [m, n/16] over `X.weight_global_scale`."""

    markers = frozenset({"weight_global_scale"})

    def find(self, near: Neighbours, quantization: Quantization) -> Encoded | None:
        is_known = any(scheme.format == FORMAT for scheme in quantization.schemes)
        if quantization.method != COMPRESSED_TENSORS or not is_known:
            return None
        return _found(near, DIVIDED, near.get(PACKED, "U8"), near.get("weight_global_scale", "F32"))


@register
class ModelOptNvfp4:
    """`X.weight` U8 [m, n/2], `X.weight_scale` F8_E4M3 [m, n/16] times `X.weight_scale_2`."""

    markers = frozenset({"weight_scale_2"})

    def find(self, near: Neighbours, quantization: Quantization) -> Encoded | None:
        if (quantization.method, quantization.algorithm) != (MODELOPT, NVFP4):
            return None
        return _found(near, MULTIPLIED, near.get(WEIGHT, "U8"), near.get("weight_scale_2", "F32"))


def _found(
    near: Neighbours, encoding: str, packed: TensorInfo | None, global_scale: TensorInfo | None
) -> Encoded | None:
    scale = near.get("weight_scale", "F8_E4M3")
    if packed is None or scale is None or global_scale is None or prod(global_scale.shape) != 1:
        return None
    if len(packed.shape) != 2 or scale.shape != (packed.shape[0], packed.shape[1] * 2 / GROUP):
        return None
    shape = packed.shape[0], packed.shape[1] * 2
    parts = {VALUES: packed, SCALE: scale, GLOBAL_SCALE: global_scale}
    return near.weight(encoding, shape, parts, tile=(1, GROUP))
