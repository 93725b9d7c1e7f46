"""The truncated singular value decomposition: the best approximation of a matrix at a given rank."""

import math
from dataclasses import dataclass

import torch

from worker.lowrank.decomposition import Decomposition, decompositions
from worker.lowrank.edge import check_rank, check_seed, finite_exponent
from worker.lowrank.lapack import NotConvergedError
from worker.lowrank.ranks import optimal_error
from worker.lowrank.residual import measure
from worker.lowrank.scale import times_power

SOLVERS = ("auto", "exact")
# How far the measured error of a truncation may stand above the tail of its own spectrum.
EXCESS = 5e-5
# What float64 may leave where the optimum is zero, relative to ‖W‖, per √p.
FLOAT64_NOISE = 1e-14


@dataclass(frozen=True)
class LowRank:
    """W ≈ left · right, the singular values split evenly: left = U_k √Σ_k [m, k], right = √Σ_k V_kᵀ [k, n].

    ``singular_values`` is the full spectrum [min(m, n)], float64, descending.
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
    solver : {"auto", "exact"}
        Both are the exact decomposition: float32 first, float64 where the error left is so small that float32
        would be seen in it, then QR iteration where divide and conquer fails.
    seed : int
        ≥ 0; for solvers that use chance; none does yet.

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
    >>> found.singular_values.tolist()
    [4.0, 3.0, 1.0, 0.5]
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}")
    check_seed(seed)
    weight = weight.detach()
    exponent = finite_exponent(weight)
    check_rank(rank, weight)
    for decomposition in decompositions(weight, exponent):
        if decomposition.resolves(rank):
            found = truncate(decomposition, rank, exponent)
            residual = measure(weight, found.factors, exponent)
            if is_optimal(residual.relative, decomposition, rank):
                return found
    raise NotConvergedError


def truncate(decomposition: Decomposition, rank: int, exponent: int) -> LowRank:
    """Return the leading terms of a decomposition, scaled back (Eckart and Young 1936).

    Parameters
    ----------
    decomposition : Decomposition
        Of 2^-exponent · W [m, n], with vectors.
    rank : int
        k, 1 ≤ k ≤ min(m, n).
    exponent : int
        Even (see :func:`worker.lowrank.scale.exponent_of`).

    Returns
    -------
    LowRank
        left [m, k] and right [k, n] in the dtype of the decomposition, the spectrum [min(m, n)] in float64;
        infinite where these cannot hold W's scale.
    """
    left, right = decomposition.vectors(rank)  # [m, k], [k, n]
    roots = decomposition.singular_values[:rank].sqrt().to(left)
    root_scale = math.ldexp(1.0, exponent // 2)
    return LowRank(
        left.mul_(roots).mul_(root_scale),
        right.mul_(roots[:, None]).mul_(root_scale),
        times_power(decomposition.singular_values, exponent),
    )


def is_optimal(relative: float, decomposition: Decomposition, rank: int) -> bool:
    """Say whether a truncation's measured relative error is the tail of its spectrum, as it must be."""
    tail = optimal_error(decomposition.singular_values, rank)
    noise = 0.0
    if decomposition.dtype == torch.float64:
        noise = FLOAT64_NOISE * math.sqrt(decomposition.singular_values.numel())
    return relative <= math.hypot(tail * (1 + EXCESS), noise)
