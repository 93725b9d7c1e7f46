"""The truncated singular value decomposition: the best approximation of a matrix at a given rank."""

import math
from dataclasses import dataclass
from functools import partial

import torch

from worker.lowrank.candidate import Candidate, DecomposedWeight, OutOfRangeError
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.factor import factor_at
from worker.lowrank.solvers import solve, solve_exactly
from worker.lowrank.truncation import truncate, truncate_weighted
from worker.lowrank.weighted_truncation import truncate_in_float32
from worker.lowrank.weighting import error_floor

SOLVERS = ("auto", "gram", "exact")
# The share by which the measured error of a truncation may exceed the tail of its own spectrum.
EXCESS = 5e-5
# The error that float64 may leave where the best possible one is zero, relative to ‖W‖, per √p.
FLOAT64_NOISE = 1e-14


@dataclass(frozen=True)
class SVDMethod:
    """W ≈ left · right of least error; a :class:`worker.lowrank.candidate.Method`."""

    def candidate(self, decomposed: DecomposedWeight, rank: int) -> Candidate:
        """Return ``(right [k, n], left [m, k])``; see :class:`worker.lowrank.candidate.Method`."""
        scaled, decomposition = decomposed.scaled, decomposed.decomposition
        working = torch.promote_types(scaled.matrix.dtype, decomposition.basis.dtype)
        dtype = decomposed.dtype or working
        weighting = decomposed.weighting
        if decomposed.products is not None and decomposition.basis.dtype == torch.float32:
            found = truncate_in_float32(
                decomposed.products,
                decomposition,
                rank,
                dtype=dtype,
                needs_exact_error=decomposed.needs_exact_error,
            )
        elif weighting is not None and weighting.outputs is not None:
            found = truncate_weighted(scaled, decomposition, rank, dtype=dtype, weighting=weighting)
        else:
            found = truncate(scaled, decomposition, rank, dtype=dtype)
        if found is None:
            raise OutOfRangeError
        weighted = found.weighted or decomposed.weighted_error(found.factors)
        if weighting is not None and weighted is not None:
            floor = error_floor(weighting, found.factors, weighted.objective, rounding=torch.finfo(dtype).eps)
            accurate = is_optimal(weighted.objective.relative, decomposition, rank, rounding=floor)
            return Candidate(rank, found.factors, found.residual, accurate, weighted=weighted)
        rounding = 0.0 if dtype == working else torch.finfo(dtype).eps
        accurate = is_optimal(found.residual.relative, decomposition, rank, rounding=rounding)
        residual = decomposed.residual(found.factors) if decomposed.needs_exact_error else found.residual
        return Candidate(rank, found.factors, residual, accurate)


def is_optimal(relative: float, decomposition: Decomposition, rank: int, *, rounding: float = 0.0) -> bool:
    """Return whether the relative error of a truncation is the tail of its spectrum, up to some rounding."""
    if decomposition.basis.dtype == torch.float64:
        rounding = max(rounding, FLOAT64_NOISE * math.sqrt(decomposition.singular_values.numel()))
    return relative <= math.hypot(decomposition.optimal_error(rank) * (1 + EXCESS), rounding)


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


def svd(weight: torch.Tensor, rank: int, *, solver: str = "auto", seed: int = 0) -> LowRank:
    """Return the best approximation of rank k in the Frobenius norm (Eckart and Young 1936).

    Parameters
    ----------
    weight : Tensor [m, n]
        Finite; float64, float32, float16 or bfloat16.
    rank : int
        1 ≤ k ≤ min(m, n).
    solver : {"auto", "gram", "exact"}
        ``auto`` begins with a random block Krylov space, where that is faster and its error is certain to be
        within 1e-3 of the best possible one (see :func:`worker.lowrank.krylov.krylov_decomposition`). Where
        it is not, and with ``gram``, the eigenpairs of a Gram matrix follow, to 1e-4. Where they are not
        accurate enough for the error left, and with ``exact``, the SVD in float64 follows (see
        :func:`worker.lowrank.solvers.solve`).
    seed : int
        ≥ 0; of the Krylov space.

    Returns
    -------
    LowRank
        In the dtype computed in: float32, or float64 where that was the input or was needed.

    Raises
    ------
    ValueError
        If an argument is out of its range or the weight is not finite.
    ArithmeticError
        If no solver converged to the accuracy that its spectrum promises.

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
    solvers = {
        "gram": partial(solve, num_vectors=rank, all_values=False),
        "exact": partial(solve_exactly, num_vectors=rank),
    }
    found = factor_at(weight, SVDMethod(), rank, seed=seed, solver=solvers.get(solver))
    right, left = found.factors
    assert found.singular_values is not None
    return LowRank(left, right, found.singular_values)
