"""Least squares on chosen columns, by orthogonal factors and never by normal equations."""

import sys
from dataclasses import dataclass
from typing import Self

import torch

from worker.lowrank.decomposition import LINALG_ERRORS, full_svd
from worker.lowrank.scale import times_power

EPS = sys.float_info.epsilon
# Columns of the right-hand side taken to float64 at a time.
BLOCK_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class PseudoInverse:
    """C⁺ of 2^-exponent · C [m, k] = Q U diag(s) Vᵀ D, in float64; D evens out the columns."""

    basis: torch.Tensor  # Q U [m, k]
    s: torch.Tensor  # [k]
    vh: torch.Tensor  # [k, k]
    column_scale: torch.Tensor  # D [k]

    @classmethod
    def of(cls, c: torch.Tensor, exponent: int) -> Self:
        """Factor 2^-exponent · C [m, k], m ≥ k, by QR and then an SVD of the small factor."""
        c = times_power(c.to(torch.float64), -exponent)
        norms = torch.linalg.vector_norm(c, dim=0)  # [k]
        scale = torch.ldexp(torch.ones_like(norms), torch.frexp(norms).exponent)
        q, r = torch.linalg.qr(c / scale)  # [m, k], [k, k]
        try:
            u, s, vh = full_svd(r)
        except LINALG_ERRORS:
            u, s, vh = full_svd(r, iterate=True)
        return cls(q @ u, s, vh, scale)

    def solve(self, rhs: torch.Tensor, *, cutoff: float = 0.0) -> torch.Tensor:
        """Return the X [k, j] of least norm that minimises ‖C X - rhs‖_F, in float64.

        Directions of C with a singular value under `cutoff` (or under rounding) of its largest are left out.
        """
        floor = max(cutoff, EPS * max(self.basis.shape)) * float(self.s[0])
        keep = int((self.s > floor).sum())
        step = max(1, BLOCK_ELEMENTS // rhs.shape[0])
        projected = torch.cat(
            [self.basis[:, :keep].mT @ block.to(torch.float64) for block in torch.split(rhs, step, dim=1)],
            dim=1,
        )  # [keep, j]
        return (self.vh[:keep].mT @ (projected / self.s[:keep, None])) / self.column_scale[:, None]
