"""Decode floats of four bits with a scale for each sixteen and one for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from schemas.format.encodings.base import GLOBAL_SCALE, SCALE, VALUES
from worker.encodings.base import Parts, register, row_blocks, scaled_tiles

if TYPE_CHECKING:
    from schemas.format.encodings import Encoded

# By the four bits: one of sign, two of exponent, one of mantissa.
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = (*MAGNITUDES, *(-value for value in MAGNITUDES))


@register("nvfp4_divided")
def decode_divided(weight: Encoded, parts: Parts) -> torch.Tensor:
    """Return w = q · (s / g) in bfloat16, as compressed-tensors does."""
    scale = parts[SCALE].to(torch.bfloat16) / parts[GLOBAL_SCALE]
    return _scaled(weight, parts[VALUES], scale, torch.bfloat16)


@register("nvfp4_multiplied")
def decode_multiplied(weight: Encoded, parts: Parts) -> torch.Tensor:
    """Return w = q · (s · g) in float32, as ModelOpt defines it."""
    scale = parts[SCALE].to(torch.float32) * parts[GLOBAL_SCALE]
    return _scaled(weight, parts[VALUES], scale, torch.float32)


def _scaled(weight: Encoded, packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rows, columns = weight.shape
    found = torch.empty(rows, columns, dtype=dtype)
    for block in row_blocks(rows, columns):
        found[block] = scaled_tiles(unpack_e2m1(packed[block], scale.dtype), scale[block], weight.tile)
    return found


def unpack_e2m1(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the floats of four bits that bytes hold two of each, the first in the low bits.

    Parameters
    ----------
    packed : Tensor [..., n]
        Bytes.
    dtype : torch.dtype
        That of the result.

    Returns
    -------
    Tensor [..., 2n]
        The floats.
    """
    table = torch.tensor(E2M1, dtype=dtype)
    pairs = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)
    return table[pairs.to(torch.int32)]
