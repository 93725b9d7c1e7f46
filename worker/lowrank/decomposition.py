"""Singular values and vectors of a weight, and what follows from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch

from schemas.spectrum import is_accurate, smallest_rank_within, squared_tails
from worker.lowrank.blas import product
from worker.lowrank.lapack import thin_qr

Axis = Literal["columns", "rows"]

# Vectors of singular values below this share of the largest are orthogonalized again: rounding has bent them.
WEAK = 1e-3


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Singular values of A = 2^-exponent · W [m, n] and the leading singular vectors of one of its sides.

    The best approximation of rank k is the projection of A on the first k vectors, so one side is enough.
    Where the layer is calibrated (see :mod:`worker.lowrank.calibrated`), the values are those of A·S.

    Attributes
    ----------
    singular_values : Tensor [p], float64, on the CPU
        Descending: all min(m, n) of them, or only the leading ones where `tail_energy` is not 0.
    basis : Tensor [r, n] or [r, m], float32 or float64
        Orthonormal rows, each with its largest entry positive: right singular vectors for the axis "columns",
        left ones for "rows".
    axis : {"columns", "rows"}
        Which vectors the basis holds.
    roundoff : float
        The share of Σσ² that rounding may have moved; 0 where float64 cannot do better.
    tail_energy : float
        Σσ² over the singular values that are not given.
    calibrated : bool
        Whether the values are those of A·S, so that they do not measure the directions of A itself.
    """

    singular_values: torch.Tensor
    basis: torch.Tensor
    axis: Axis
    roundoff: float
    tail_energy: float = 0.0
    calibrated: bool = False

    @cached_property
    def _tails(self) -> Sequence[float]:
        return squared_tails(self.singular_values.tolist())

    def optimal_error(self, rank: int) -> float:
        """Return min ‖A - Â‖_F/‖A‖_F over all Â of this rank (Eckart and Young 1936); 0 for zero."""
        total = self._tails[0] + self.tail_energy
        return math.sqrt((self._tails[rank] + self.tail_energy) / total) if total > 0 else 0.0

    def smallest_rank_within(self, loss: float) -> int | None:
        """Return the least rank that loses at most this share of Σσ².

        None where the rounding of this decomposition decides it, or not all values are known.
        """
        return None if self.tail_energy > 0 else smallest_rank_within(self._tails, loss, self.roundoff)

    def is_accurate_for(self, rank: int) -> bool:
        """Return whether there are as many vectors, and the error they leave is well above rounding."""
        if rank > len(self.basis):
            return False
        tail, total = (energy + self.tail_energy for energy in (self._tails[rank], self._tails[0]))
        return is_accurate(self.roundoff, tail, total)

    def factors(self, matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return left [m, k] and right [k, n], this side orthonormal; their product is the projection of A.

        Parameters
        ----------
        matrix : Tensor [m, n]
            A, float32 or float64.
        rank : int
            k, at most the number of vectors.
        """
        basis = self.basis[:rank]
        dtype = torch.promote_types(matrix.dtype, basis.dtype)
        matrix, basis = matrix.to(dtype), basis.to(matrix.device, dtype)
        if self.axis == "columns":
            return product(matrix, basis.mT), basis
        return basis.mT, product(basis, matrix)

    def vectors(self, matrix: torch.Tensor, rank: int, *, axis: Axis) -> torch.Tensor:
        """Return the leading singular vectors of one side of A as orthonormal columns [n or m, k].

        The vectors of the other axis are computed by multiplying `matrix` with the known ones. With a Gram
        matrix they are no singular vectors of A·S, only an orthonormal basis of that product.

        Parameters
        ----------
        matrix : Tensor [m, n]
            A, float32 or float64.
        rank : int
            k, at most the number of vectors.
        axis : {"columns", "rows"}
            V_k [n, k], which weighs columns, or U_k [m, k].
        """
        if axis == self.axis:
            return self.basis[:rank].to(matrix.device).mT
        left, right = self.factors(matrix, rank)
        return self._normalized(left if axis == "rows" else right.mT)

    def _normalized(self, projected: torch.Tensor) -> torch.Tensor:
        norms: torch.Tensor = torch.linalg.vector_norm(projected, dim=0)  # [k]
        if not self.calibrated and bool(norms.min() > WEAK * norms.max()):
            return projected / norms
        # Where A has no directions left, any orthonormal ones will do.
        q, r = thin_qr(projected)
        turned: torch.Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
        return turned


class SolverCache(Protocol):
    """Decompositions of one weight, by the number of the solver in the cascade; a dict is one.

    They may have fewer vectors than the solver would compute, but as many as the request needs.
    """

    def get(self, solver: int, /) -> Decomposition | None: ...
    def __setitem__(self, solver: int, decomposition: Decomposition, /) -> None: ...
