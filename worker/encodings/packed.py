"""Decode integers of a few bits that are packed into words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from schemas.format.encodings.base import GROUP_INDEX, SCALE, VALUES, ZERO_POINT
from worker.codecs import unpack_integers
from worker.encodings.base import Parts, register, row_blocks, scaled_tiles

if TYPE_CHECKING:
    from schemas.format.encodings import Encoded


@register("packed")
def decode_packed(weight: Encoded, parts: Parts) -> torch.Tensor:
    """Return w = (q - z) · s in the dtype of the scales, as compressed-tensors does.

    A group index says of which group each column is, where it is not that of its place; -1 says that it is.
    """
    rows, columns = weight.shape
    scale = parts[SCALE]  # [m, n/g]
    zeros, groups = parts.get(ZERO_POINT), parts.get(GROUP_INDEX)
    if zeros is not None:
        # The zero points of a column of groups are packed from top to bottom.
        zeros = unpack_integers(zeros.mT, weight.bits, rows).mT.to(scale.dtype)
    tile = weight.tile
    if groups is not None and int(groups.min()) >= 0:
        scale, zeros, tile = scale[:, groups], None if zeros is None else zeros[:, groups], (1, 1)
    found = torch.empty(rows, columns, dtype=scale.dtype)
    for block in row_blocks(rows, columns):
        values = unpack_integers(parts[VALUES][block], weight.bits, columns).to(scale.dtype)
        if zeros is not None:
            values -= zeros[block].repeat_interleave(tile[1], dim=1)
        found[block] = scaled_tiles(values, scale[block], tile)
    return found
