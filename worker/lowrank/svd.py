"""The truncated singular value decomposition: the best approximation of a matrix at a given rank."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from worker.lowrank.blas import one_pool
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.edge import check_rank, check_seed, finite_exponent
from worker.lowrank.krylov import sketched
from worker.lowrank.ladder import decompositions, directly
from worker.lowrank.lapack import NotConvergedError
from worker.lowrank.projection import project
from worker.lowrank.scale import ScaledWeight, times_power

SOLVERS = ("auto", "gram", "exact")
# How far the measured error of a truncation may stand above the tail of its own spectrum.
EXCESS = 5e-5
# What float64 may leave where the optimum is zero, relative to ‖W‖, per √p.
FLOAT64_NOISE = 1e-14


@dataclass(frozen=True)
class LowRank:
    """W ≈ left · right, the singular values split evenly: left = U_k √Σ_k [m, k], right = √Σ_k V_kᵀ [k, n].

    ``singular_values`` are all that are known, float64, descending: at least k, at most min(m, n).
    """

    left: torch.Tensor
    right: torch.Tensor
    singular_values: torch.Tensor

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Input side first, as in a ``torch.nn.Sequential``."""
        return self.right, self.left


@one_pool()
def svd(weight: torch.Tensor, rank: int, *, solver: str = "auto", seed: int = 0) -> LowRank:
    """Return the best approximation of rank k in the Frobenius norm (Eckart and Young 1936).

    Parameters
    ----------
    weight : Tensor [m, n]
        Finite; float64, float32, float16 or bfloat16.
    rank : int
        1 ≤ k ≤ min(m, n).
    solver : {"auto", "gram", "exact"}
        ``auto`` begins with a random block Krylov space, where that is faster and certain to come within 1e-3
        of the optimum (see :func:`worker.lowrank.krylov.sketched`). Else, and with ``gram``, it is eigenpairs
        of a Gram matrix, to 1e-4. Where they are not good enough for the error left, and with ``exact``, it
        is the SVD in float64 (see :func:`worker.lowrank.ladder.decompositions`).
    seed : int
        ≥ 0; of the sketch.

    Returns
    -------
    LowRank
        In the dtype computed in: float32, or float64 where that was the input or was needed.

    Raises
    ------
    ValueError
        If an argument is out of its range or the weight is not finite.
    ArithmeticError
        If no step of the ladder converged and passed the check of its error.

    Examples
    --------
    >>> found = svd(torch.diag(torch.tensor([4.0, 3.0, 0.5, 1.0])), 2)
    >>> found.left.shape, found.right.shape
    (torch.Size([4, 2]), torch.Size([2, 4]))
    >>> [round(value, 6) for value in found.singular_values.tolist()]
    [4.0, 3.0, 1.0, 0.5]
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}")
    check_seed(seed)
    scaled = ScaledWeight(weight.detach(), finite_exponent(weight.detach()))
    check_rank(rank, weight)
    for decomposition in _attempts(scaled.matrix, rank, solver, seed):
        if decomposition.resolves(rank):
            working = torch.promote_types(scaled.matrix.dtype, decomposition.basis.dtype)
            found = project(scaled, decomposition, rank, dtype=working)
            if found is not None and is_optimal(found.residual.relative, decomposition, rank):
                right, left = found.factors
                return LowRank(left, right, times_power(decomposition.singular_values, scaled.exponent))
    raise NotConvergedError


def _attempts(matrix: torch.Tensor, rank: int, solver: str, seed: int) -> Iterator[Decomposition]:
    if solver == "exact":
        yield from directly(matrix, extent=rank)
        return
    if solver != "gram" and (found := sketched(matrix, rank, seed=seed)) is not None:
        yield found
    yield from decompositions(matrix, extent=rank, whole=False)


def is_optimal(relative: float, decomposition: Decomposition, rank: int, *, rounding: float = 0.0) -> bool:
    """Say whether a truncation's relative error is the tail of its spectrum, but for some rounding."""
    if decomposition.basis.dtype == torch.float64:
        rounding = max(rounding, FLOAT64_NOISE * math.sqrt(decomposition.singular_values.numel()))
    return relative <= math.hypot(decomposition.tail(rank) * (1 + EXCESS), rounding)
