"""Decode floats of four bits with a power of two for each 32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from schemas.format.encodings.base import SCALE, VALUES
from worker.encodings.base import E8M0_BIAS, Parts, register, row_blocks
from worker.encodings.nvfp4 import unpack_e2m1

if TYPE_CHECKING:
    from schemas.format.encodings import Encoded


@register("mxfp4")
def decode_mxfp4(weight: Encoded, parts: Parts) -> torch.Tensor:
    """Return w = q · 2^(s - 127) in bfloat16 as [inputs, outputs], as transformers does."""
    inputs, outputs = weight.shape
    exponents = parts[SCALE].to(torch.int32) - E8M0_BIAS  # [outputs, inputs/32]
    found = torch.empty(outputs, inputs, dtype=torch.bfloat16)
    for block in row_blocks(outputs, inputs):
        values = unpack_e2m1(parts[VALUES][block], torch.bfloat16)  # [rows, inputs/32, 32]
        found[block] = torch.ldexp(values, exponents[block].unsqueeze(-1)).flatten(1)
    return found.mT.contiguous()
