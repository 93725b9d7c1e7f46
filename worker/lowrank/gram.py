"""A Gram matrix in the form that is computed with: equilibrated, ridged and with a triangular root."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch

from worker.lowrank.blas import product, symmetrize
from worker.lowrank.lapack import leading_eigenpairs, ridged_cholesky

GRAM_DTYPES = (torch.float64, torch.float32)
# Relative to the size of each input (see `ScaledGram`): below it, the Gram matrix is rounding.
RIDGES = {torch.float64: 1e-10, torch.float32: 1e-6}
# A centered Gram matrix has the rounding of the sums before the mean was taken out. An input counts as no
# smaller than this share of its sum, so that the ridge stays above that rounding.
CENTERED_FLOORS = {torch.float64: 1e-3, torch.float32: 1.0}


@dataclass(frozen=True, eq=False)
class ScaledGram:
    """G = D C D with diagonal D, so that C is as well scaled as G can be (van der Sluis 1969).

    Attributes
    ----------
    scale : Tensor [n]
        D: the roots of G's diagonal, or of δ times its mean where that is larger; float64.
    core : Tensor [n, n]
        C: symmetric, its diagonal at most 1; float64.
    ridge : float
        δ: 1e-10, or 1e-6 where G came in float32. What is minimized is ‖(W - Ŵ)X‖² + δ‖(W - Ŵ)D‖², so that
        directions that no input reaches are chosen by the plain error, each input taken by its own size.
    """

    scale: torch.Tensor
    core: torch.Tensor
    ridge: float

    @classmethod
    def of(cls, gram: torch.Tensor, *, center: tuple[torch.Tensor, float] | None = None) -> Self:
        """Center and equilibrate a Gram matrix.

        Parameters
        ----------
        gram : Tensor [n, n]
            G, float64 or float32, in which :func:`worker.lowrank.gram_fault` finds no fault.
        center : mean [n] and count, or None
            μ and N: G - Nμμᵀ takes the place of G. Where rounding makes a direction of it negative, that
            direction counts as zero.
        """
        diagonal = gram.diagonal().to(torch.float64)  # [n]
        floor = diagonal.new_full((), RIDGES[gram.dtype] * float(diagonal.mean()))
        ridge = RIDGES[gram.dtype]
        core = gram.to(torch.float64, copy=True)
        if center is not None:
            mean, count = center
            dtype = torch.float32 if torch.float32 in (gram.dtype, mean.dtype) else torch.float64
            ridge = RIDGES[dtype]
            floor = torch.maximum(floor, CENTERED_FLOORS[dtype] * diagonal)
            mean = mean.to(gram.device, torch.float64)
            core.addr_(mean, mean, alpha=-count)
        scale = torch.maximum(core.diagonal(), floor).sqrt()
        return cls(scale, symmetrize(core.div_(scale[:, None]).div_(scale)), ridge)

    def divided(self, number: float) -> Self:
        """Return the form of G/number."""
        return replace(self, scale=self.scale / math.sqrt(number))

    @cached_property
    def norm(self) -> float:
        """‖C‖_F."""
        return float(torch.linalg.matrix_norm(self.core))

    @cached_property
    def root(self) -> tuple[torch.Tensor, float]:
        """L [n, n], lower triangular, with L Lᵀ = C + δ'I, and δ'.

        δ' is δ, or ten times δ where rounding of G needs it. Where even that is not positive, C is projected
        on the positive semidefinite matrices first.

        Raises
        ------
        LinAlgError
            Torch's or numpy's, if no root was found.
        """
        for ridge in (self.ridge, 10 * self.ridge):
            lower = ridged_cholesky(self.core, ridge)
            if lower is not None:
                return lower, ridge
        values, rows = leading_eigenpairs(self.core, len(self.core), all_values=True)
        positive = values.clamp_min(0).to(rows.device)
        projected = product(rows.mT * positive, rows)
        lower = ridged_cholesky(projected, 10 * self.ridge)
        if lower is None:
            raise torch.linalg.LinAlgError("the Gram matrix has no root")  # type: ignore[attr-defined]
        return lower, 10 * self.ridge

    def weigh(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return Lᵀ D M [n, j] of a matrix M [n, j], in float64: its squared norm is tr(Mᵀ G M), ridged."""
        scaled = matrix.to(torch.float64) * self.scale[:, None]
        return product(self.root[0].mT, scaled)

    def unweigh(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return D⁻¹ L⁻ᵀ M [n, j], which undoes :meth:`weigh`."""
        solved: torch.Tensor = torch.linalg.solve_triangular(
            self.root[0].mT, matrix.to(torch.float64), upper=True
        )
        return solved.div_(self.scale[:, None])
