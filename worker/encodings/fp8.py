"""Decode floats of eight bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from schemas.format.encodings.base import SCALE, VALUES, tiles
from worker.encodings.base import Parts, as_factors, register, scaled_tiles

if TYPE_CHECKING:
    from schemas.format.encodings import Encoded


@register("fp8_block")
def decode_fp8_block(weight: Encoded, parts: Parts) -> torch.Tensor:
    """Return w = q · s in float32, as transformers does before it rounds to the dtype of the model."""
    scale = as_factors(parts[SCALE]).reshape(tiles(weight.shape, weight.tile))
    return scaled_tiles(parts[VALUES].to(torch.float32), scale, weight.tile)


@register("fp8_scaled")
def decode_fp8_scaled(weight: Encoded, parts: Parts) -> torch.Tensor:
    """Return w = q · s in the dtype of the scales, as compressed-tensors does."""
    scale = parts[SCALE].reshape(tiles(weight.shape, weight.tile))
    return scaled_tiles(parts[VALUES].to(scale.dtype), scale, weight.tile)
