"""Least squares on chosen columns, by orthogonal factors and never by normal equations."""

import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import torch

from worker.lowrank.blas import product
from worker.lowrank.error import BLOCK_ELEMENTS
from worker.lowrank.lapack import NotConvergedError, converging, full_svd, thin_qr
from worker.lowrank.scale import times_power

EPS = sys.float_info.epsilon


@dataclass(frozen=True)
class PseudoInverse:
    """C⁺ of 2^-exponent · C [m, k] = Q U diag(s) Vᵀ D, in float64; D evens out the columns."""

    basis: torch.Tensor  # Q U [m, k]
    s: torch.Tensor  # [k]
    vh: torch.Tensor  # [k, k]
    column_scale: torch.Tensor  # D [k]

    @classmethod
    def of(cls, c: torch.Tensor, exponent: int) -> Self:
        """Factor 2^-exponent · C by QR and then an SVD of the small factor.

        Golub and Van Loan 2013, Matrix Computations, section 5.5.

        Parameters
        ----------
        c : Tensor [m, k]
            C, m ≥ k ≥ 1.
        exponent : int
            The scale of the weight that C is of (see :func:`worker.lowrank.scale.exponent_of`).

        Returns
        -------
        PseudoInverse
            In float64, on the device of C.

        Raises
        ------
        NotConvergedError
            An ArithmeticError: if neither divide and conquer nor QR iteration found that SVD.
        """
        c = times_power(c.to(torch.float64), -exponent)
        norms = torch.linalg.vector_norm(c, dim=0)  # [k]
        scale = torch.ldexp(torch.ones_like(norms), torch.frexp(norms).exponent)
        q, r = thin_qr(c / scale)  # [m, k], [k, k]
        u, s, vh = _careful_svd(r)
        return cls(product(q, u), s, vh, scale)

    def solve(self, rhs: torch.Tensor, *, cutoff: float = 0.0) -> torch.Tensor:
        """Return the X of least ‖D X‖_F that minimizes ‖C X - rhs‖_F, C scaled as in :meth:`of`.

        Parameters
        ----------
        rhs : Tensor [m, j]
            The right-hand side, scaled like C.
        cutoff : float
            In [0, 1): directions with a singular value under this part of the largest, or under rounding, are
            left out.

        Returns
        -------
        Tensor [k, j]
            X, in float64.
        """
        floor = max(cutoff, EPS * max(self.basis.shape)) * float(self.s[0])
        rank = int((self.s > floor).sum())
        step = max(1, BLOCK_ELEMENTS // rhs.shape[0])
        projected = torch.cat(
            [
                product(self.basis[:, :rank].mT, block.to(torch.float64))
                for block in torch.split(rhs, step, dim=1)
            ],
            dim=1,
        )  # [rank, j]
        scaled = projected / self.s[:rank, None]
        return product(self.vh[:rank].mT, scaled) / self.column_scale[:, None]


def _careful_svd(r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with suppress(NotConvergedError), converging(r.device):
        return full_svd(r)
    with converging(r.device):
        return full_svd(r, iterate=True)
