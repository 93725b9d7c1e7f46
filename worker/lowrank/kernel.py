"""Factor one convolution kernel into a chain of smaller ones: the search for the rank, and the error.

The methods whose factors no single matrix gives are here: :class:`worker.lowrank.tucker.Tucker2Method`,
:class:`worker.lowrank.cp.CPMethod` and :class:`worker.lowrank.separable.SeparableMethod`. `channel` and
`spatial` are truncated SVDs, which :func:`worker.lowrank.factor` takes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from schemas.spectrum import TIE
from schemas.spectrum_rank import AutoRule
from worker.lowrank.blas import limit_blas_threads
from worker.lowrank.candidate import OutOfRangeError, smallest_rank
from worker.lowrank.error import Residual, measure
from worker.lowrank.lapack import NotConvergedError, converging
from worker.lowrank.scale import check_weight, exponent_of, scaled_copy, times_power
from worker.lowrank.truncation import fits_dtype
from worker.lowrank.types import AutoRank, ErrorRank, Factored, FactorRequest, Kept, Reason

Kernels = tuple[torch.Tensor, ...]


class KernelProblem(Protocol):
    """One kernel, scaled to order one, and what a method finds out about it."""

    def least_rank(self, loss: float) -> int:
        """Return a rank, ≥ 1, that no smaller one can do better than to lose this share of ‖W‖_F²."""
        ...

    def auto_rank(self, rule: AutoRule) -> int:
        """Return the rank by the number of singular values that stand out of noise, maybe 0."""
        ...

    def factors(self, rank: int) -> Kernels:
        """Return the factors at a rank, float64, input side first; NotConvergedError if there are none."""
        ...

    def join(self, factors: Kernels) -> torch.Tensor:
        """Return the kernel [o, i·K] of factors."""
        ...

    @property
    def spectrum(self) -> torch.Tensor | None:
        """Values, float64 [p], whose squares after the first k sum up to the best squared error at rank k."""
        ...


class KernelMethod(Protocol):
    """How a kernel is approximated at a rank."""

    def problem(self, kernel: torch.Tensor, *, seed: int) -> KernelProblem:
        """Return the problem of a kernel [o, i, K], float64, with all its sides in one."""
        ...


@dataclass(frozen=True)
class Attempt:
    """Stored factors of one rank, and their error."""

    rank: int
    factors: Kernels
    residual: Residual


@limit_blas_threads()
def factor_kernel(
    weight: torch.Tensor, elements: int, request: FactorRequest, method: KernelMethod
) -> Factored | Kept:
    """Factor one kernel as requested, or return the reason why it stays dense.

    Parameters
    ----------
    weight : Tensor [o, i·K]
        float64, float32, float16 or bfloat16. It is not changed.
    elements : int
        K, the number of the kernel's elements.
    request : FactorRequest
        Rank or rank rule, and how the factors are stored; its method and statistics are not used. A rule by
        energy or error is met by the error that is measured.
    method : KernelMethod
        How the kernel is approximated.

    Returns
    -------
    Factored or Kept
        Factors input side first, with the sides of the kernel in one. Same input, same bytes, on the same
        machine.
    """
    if request.max_rank < (request.rank if isinstance(request.rank, int) else 1):
        return Kept(reason=Reason.NO_SAVING)
    check_weight(weight)
    exponent = exponent_of(weight)
    if exponent is None:
        return Kept(reason=Reason.NOT_FINITE)
    scaled = scaled_copy(weight.detach(), exponent, torch.float64)
    try:
        with converging(weight.device):
            problem = method.problem(scaled.reshape(len(scaled), -1, elements), seed=request.seed)
            found = _search(weight.detach(), exponent, request, problem)
    except OutOfRangeError:
        return Kept(reason=Reason.OUT_OF_RANGE)
    except NotConvergedError:
        return Kept(reason=Reason.NOT_CONVERGED)
    return found if isinstance(found, Kept) else _factored(found, problem, exponent)


def _search(
    weight: torch.Tensor, exponent: int, request: FactorRequest, problem: KernelProblem
) -> Attempt | Kept:
    """Return the attempt at the least allowed rank that meets the rule."""
    rule, ceiling = request.rank, request.max_rank
    if isinstance(rule, int):
        least, loss, align = rule, math.inf, 1
    elif isinstance(rule, AutoRank):
        least, loss, align = problem.auto_rank(rule.rule), math.inf, request.align
    else:
        least, loss, align = problem.least_rank(rule.loss), rule.loss, request.align
    if least == 0:
        return Kept(reason=Reason.RANK_ZERO)
    rank = least if isinstance(rule, int) else request.aligned(least)
    if rank > ceiling:
        return Kept(reason=Reason.NO_SAVING)

    def attempt(multiple: int) -> Attempt:
        stored = _stored(problem.factors(multiple * align), exponent, request.dtype or torch.float32)
        product = problem.join(tuple(factor.double() for factor in stored))
        in_float64 = isinstance(rule, ErrorRank)
        residual = measure(weight, (product,), exponent, in_float64=in_float64)
        return Attempt(multiple * align, stored, residual)

    def accept(found: Attempt) -> bool:
        return found.residual.relative <= math.sqrt(loss) * (1 + TIE)

    found = smallest_rank(rank // align, ceiling // align, attempt, accept)
    return found if accept(found) else Kept(reason=Reason.NO_SAVING)


def _stored(factors: Kernels, exponent: int, dtype: torch.dtype) -> Kernels:
    """Return factors of W in the dtype that is stored; the outer two take the scale in equal parts."""
    half = exponent // 2
    scaled = [times_power(factors[0], half), *factors[1:-1], times_power(factors[-1], exponent - half)]
    if not all(fits_dtype(factor, dtype) for factor in scaled):
        raise OutOfRangeError
    return tuple(factor.to(dtype).contiguous() for factor in scaled)


def _factored(found: Attempt, problem: KernelProblem, exponent: int) -> Factored | Kept:
    residual = found.residual
    if not math.isfinite(residual.squared_norm):
        return Kept(reason=Reason.OUT_OF_RANGE)
    spectrum = problem.spectrum
    optimal = None if spectrum is None else min(tail_error(spectrum, found.rank), residual.relative)
    return Factored(
        factors=found.factors,
        rank=found.rank,
        relative_error=residual.relative,
        squared_error=residual.squared_error,
        squared_norm=residual.squared_norm,
        optimal_error=optimal,
        singular_values=None if spectrum is None else times_power(spectrum, exponent).cpu(),
        decomposition=None,
    )


def tail_error(spectrum: torch.Tensor, rank: int) -> float:
    """Return what a rank leaves of values [p], relative to the norm of all; 0 of nothing."""
    total = float(torch.linalg.vector_norm(spectrum))
    return float(torch.linalg.vector_norm(spectrum[rank:])) / total if total > 0 else 0.0


def leading_vectors(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the leading left singular vectors [m, count] of a matrix [m, n], and its m squared values.

    By the eigenvectors of MMᵀ in float64, whose rounding moves singular values by 1e-8 of the largest.
    """
    values, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    return vectors.flip(1)[:, :count], values.flip(0).clamp(min=0)


def squares_after(values: Sequence[float]) -> list[float]:
    """Return Σ_{j>k} of values for k = 0…p."""
    tails = [0.0]
    for value in reversed(values):
        tails.append(tails[-1] + value)
    return tails[::-1]
