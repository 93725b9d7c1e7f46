"""What is known of a weight's singular values and vectors, and what follows from it."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from worker.lowrank.blas import product
from worker.lowrank.lapack import thin_qr
from worker.lowrank.ranks import RankRule, least_rank, tail_energies

# How far rounding may raise the error of a truncation over the optimum, as a part of it.
ROUNDING_EXCESS = 1e-4
# Vectors of singular values under this part of the largest are made orthogonal anew: rounding has bent them.
WEAK = 1e-3


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Singular values of A = 2^-exponent · W [m, n] and the leading singular vectors of one of its sides.

    The best approximation of rank k is the projection of A on the first k vectors, so one side is enough.
    Where the layer is calibrated (see :mod:`worker.lowrank.weighted`), the values are those of A·S.

    Attributes
    ----------
    singular_values : Tensor [p], float64, on the CPU
        Descending: all min(m, n) of them, or where `rest` is not 0 only the leading ones.
    basis : Tensor [r, n] or [r, m], float32 or float64
        Orthonormal rows, each with its largest entry positive: right singular vectors for the side "columns",
        left ones for "rows".
    side : {"columns", "rows"}
        Whose vectors these are.
    noise : float
        The part of Σσ² that rounding may have moved; 0 where float64 can do no better.
    rest : float
        Σσ² over the singular values that are not given.
    weighted : bool
        Whether the values are those of A·S, so that they say nothing of the size of A's own directions.
    """

    singular_values: torch.Tensor
    basis: torch.Tensor
    side: Literal["columns", "rows"]
    noise: float
    rest: float = 0.0
    weighted: bool = False

    def tail(self, rank: int) -> float:
        """Return min ‖A - Â‖_F/‖A‖_F over all Â of this rank (Eckart and Young 1936); 0 for zero."""
        tails = tail_energies(self.singular_values)
        total = float(tails[0]) + self.rest
        return math.sqrt((float(tails[rank]) + self.rest) / total) if total > 0 else 0.0

    def decide(self, rule: RankRule) -> int | None:
        """Return the rank by a rule, or None where it hangs on the rounding of this decomposition."""
        if self.rest > 0:
            return None
        if self.noise == 0:
            return least_rank(self.singular_values, rule)
        least = least_rank(self.singular_values, rule, slack=self.noise)
        return least if least == least_rank(self.singular_values, rule, slack=-self.noise) else None

    def resolves(self, rank: int) -> bool:
        """Say whether there are as many vectors, and the error they leave stands clear of rounding."""
        if rank > len(self.basis):
            return False
        # An error of (1 + x)ε lies 2xε² above the optimum ε in its square.
        return self.noise <= 2 * ROUNDING_EXCESS * self.tail(rank) ** 2 or self.noise == 0

    def pair(self, matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return left [m, k] and right [k, n], this side orthonormal; their product is A's projection.

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
        if self.side == "columns":
            return product(matrix, basis.mT), basis
        return basis.mT, product(basis, matrix)

    def vectors(self, matrix: torch.Tensor, rank: int, *, axis: Literal["columns", "rows"]) -> torch.Tensor:
        """Return the leading singular vectors of one side of A as orthonormal columns [n or m, k].

        Where the values are those of A·S, the other side's span what the vectors known make of `matrix`.

        Parameters
        ----------
        matrix : Tensor [m, n]
            A, float32 or float64.
        rank : int
            k, at most the number of vectors.
        axis : {"columns", "rows"}
            Whether V_k [n, k] is wanted, which weighs columns, or U_k [m, k].
        """
        if axis == self.side:
            return self.basis[:rank].to(matrix.device).mT
        left, right = self.pair(matrix, rank)
        return self._normalized(left if axis == "rows" else right.mT)

    def _normalized(self, projected: torch.Tensor) -> torch.Tensor:
        norms: torch.Tensor = torch.linalg.vector_norm(projected, dim=0)  # [k]
        if not self.weighted and bool(norms.min() > WEAK * norms.max()):
            return projected / norms
        # Where A has no directions left, any will do.
        q, r = thin_qr(projected)
        turned: torch.Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
        return turned


class Memo(Protocol):
    """Decompositions of one weight, by the step of the ladder that made them: a dict will do.

    What is in it may have fewer vectors than the ladder would make, but as many as the request needs.
    """

    def get(self, step: int, /) -> Decomposition | None: ...
    def __setitem__(self, step: int, decomposition: Decomposition, /) -> None: ...
