"""Factor one weight: a request in, factors or a reason out."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch

from worker.lowrank.blas import limit_blas_threads
from worker.lowrank.calibrated import solve_calibrated
from worker.lowrank.candidate import Candidate, DecomposedWeight, Method, OutOfRangeError, smallest_rank
from worker.lowrank.decomposition import Decomposition, SolverCache
from worker.lowrank.krylov import krylov_decomposition
from worker.lowrank.lapack import NotConvergedError
from worker.lowrank.products import WeightedProducts
from worker.lowrank.scale import ScaledWeight, check_weight, exponent_of, finite_exponent, times_power
from worker.lowrank.solvers import solve
from worker.lowrank.statistics import Statistics
from worker.lowrank.types import (
    ErrorRank,
    Factored,
    FactorRequest,
    Kept,
    OutputError,
    Reason,
    check_rank,
    check_seed,
)
from worker.lowrank.weighting import Weighting


@limit_blas_threads()
def factor(
    weight: torch.Tensor, request: FactorRequest, *, cache: SolverCache | None = None
) -> Factored | Kept:
    """Factor one weight as requested, or return the reason why it stays dense.

    Numerical trouble is a result and never an exception. Each solver of the cascade (see
    :func:`worker.lowrank.solvers.solve`) runs only where the one before did not converge or was not accurate
    enough for the rank.

    For svd the error of the factors, before a cast to half precision, exceeds the best possible one by at
    most 1e-4 of it, or 1e-3 where a Krylov space was enough. Rounding the factors to the stored dtype has an
    error of its own, added in squares: about 4e-8 of ‖W‖ in float32, 1e-16 in float64, 3e-4 in float16 and
    2e-3 in bfloat16. With a Gram matrix the same holds for the error of the outputs, to the digits of that
    matrix.

    Parameters
    ----------
    weight : Tensor [m, n]
        float64, float32, float16 or bfloat16; the work is done on its device. It is not changed.
    request : FactorRequest
        Method, rank or rank rule, and how the factors are stored.
    cache : SolverCache or None
        Decompositions of this weight from earlier requests, used where the request says how many vectors they
        must hold; new ones are put there. The resulting bytes do not depend on what is in it.

    Returns
    -------
    Factored or Kept
        Same input, same bytes, on the same machine.

    Raises
    ------
    ValueError
        If the weight is not a matrix, or of a dtype that is not supported.

    Examples
    --------
    >>> from worker.lowrank import SVDMethod
    >>> request = FactorRequest(method=SVDMethod(), rank=1, max_rank=1, dtype=torch.float32)
    >>> factor(torch.ones(4, 4), request).relative_error < 1e-6
    True
    """
    least_rank = request.rank if isinstance(request.rank, int) else 1
    if least_rank > request.ceiling(weight):
        return Kept(reason=Reason.NO_SAVING)
    check_weight(weight)
    weight = weight.detach()
    exponent = exponent_of(weight)
    if exponent is None:
        return Kept(reason=Reason.NOT_FINITE)
    scaled = ScaledWeight(weight, exponent)
    weighting = _weighting(request.statistics, weight.device, centered=request.correct_bias)
    products = None if weighting is None else WeightedProducts(scaled, weighting)
    return factor_by(_decompositions(scaled, request, cache, products), scaled, request, products)


@limit_blas_threads()
def factor_at(
    weight: torch.Tensor,
    method: Method,
    rank: int,
    *,
    seed: int,
    solver: Callable[[torch.Tensor], Iterable[Decomposition]] | None = None,
) -> Factored:
    """Factor a weight at a rank, whether that saves parameters or not: the body of svd(), cx() and cur().

    Parameters
    ----------
    weight : Tensor [m, n]
        As for :func:`factor`, finite.
    method : Method
        As in :class:`worker.lowrank.FactorRequest`.
    rank : int
        1 ≤ k ≤ min(m, n).
    seed : int
        ≥ 0.
    solver : callable or None
        From the scaled weight to its decompositions; None for those that :func:`factor` takes.

    Returns
    -------
    Factored
        The factors in the dtype computed in.

    Raises
    ------
    ValueError
        If an argument is out of its range or the weight is not finite.
    ArithmeticError
        If no solver was accurate, or the squares of the weight are out of the range of float64.
    """
    check_seed(seed)
    weight = weight.detach()
    scaled = ScaledWeight(weight, finite_exponent(weight))
    check_rank(rank, weight)
    request = FactorRequest(method=method, rank=rank, max_rank=rank, dtype=None, seed=seed)
    decompositions = solver(scaled.matrix) if solver else _decompositions(scaled, request, None, None)
    found = factor_by(decompositions, scaled, request)
    if isinstance(found, Factored):
        return found
    raise OutOfRangeError if found.reason is Reason.OUT_OF_RANGE else NotConvergedError


@limit_blas_threads()
def decompose(
    weight: torch.Tensor,
    *,
    num_vectors: int,
    cache: SolverCache | None = None,
    statistics: Statistics | None = None,
    correct_bias: bool = False,
) -> Decomposition | Kept:
    """Decompose one weight for any later request, or return the reason why it stays dense.

    Parameters
    ----------
    weight : Tensor [m, n]
        As for :func:`factor`.
    num_vectors : int
        The number of singular vectors, 1 ≤ r ≤ min(m, n).
    cache : SolverCache or None
        As for :func:`factor`.
    statistics : Statistics or None
    correct_bias : bool
        As in :class:`worker.lowrank.FactorRequest`.

    Returns
    -------
    Decomposition or Kept
        With all singular values.

    Raises
    ------
    ValueError
        If the weight is not a matrix, or of a dtype that is not supported.
    """
    check_weight(weight)
    weight = weight.detach()
    exponent = exponent_of(weight)
    if exponent is None:
        return Kept(reason=Reason.NOT_FINITE)
    weighting = _weighting(statistics, weight.device, centered=correct_bias)
    if weighting is None:
        matrix = ScaledWeight(weight, exponent).matrix
        decompositions = solve(matrix, num_vectors=num_vectors, all_values=True, cache=cache)
    else:
        decompositions = solve_calibrated(weight, exponent, weighting, num_vectors=num_vectors, cache=cache)
    found = None
    for found in decompositions:
        if found.is_accurate_for(num_vectors):
            break
    return found or Kept(reason=Reason.NOT_CONVERGED)


def _weighting(statistics: Statistics | None, device: torch.device, *, centered: bool) -> Weighting | None:
    if statistics is None or not statistics.weighs_errors:
        return None
    return Weighting.of(statistics, device, centered=centered)


def factor_by(
    decompositions: Iterable[Decomposition],
    scaled: ScaledWeight,
    request: FactorRequest,
    products: WeightedProducts | None = None,
) -> Factored | Kept:
    """Factor a weight by the first of ever more accurate decompositions that is accurate enough.

    Parameters
    ----------
    decompositions : iterable of Decomposition
        Of the scaled weight, from cheap to accurate.
    scaled : ScaledWeight
        W, and A = 2^-exponent · W.
    request : FactorRequest
        As for :func:`factor`.
    products : WeightedProducts or None
        Of the weight and the statistics in the request.

    Returns
    -------
    Factored or Kept
        As for :func:`factor`.
    """
    for decomposition in decompositions:
        try:
            result = _attempt(scaled, request, decomposition, products)
        except OutOfRangeError:
            return _kept(Reason.OUT_OF_RANGE, decomposition, scaled.exponent)
        except NotConvergedError:
            continue
        if result is not None:
            return result
        del decomposition  # The next solver needs the memory.
    return Kept(reason=Reason.NOT_CONVERGED)


def _decompositions(
    scaled: ScaledWeight,
    request: FactorRequest,
    cache: SolverCache | None,
    products: WeightedProducts | None,
) -> Iterator[Decomposition]:
    if products is not None:
        wanted = request.num_vectors or request.ceiling(scaled.weight)
        yield from solve_calibrated(
            scaled.weight,
            scaled.exponent,
            products.weighting,
            num_vectors=wanted,
            cache=cache if request.num_vectors else None,
            products=products,
        )
    elif request.num_vectors is not None:
        yield from solve(scaled.matrix, num_vectors=request.num_vectors, all_values=True, cache=cache)
    elif isinstance(request.rank, int):
        if (found := krylov_decomposition(scaled.matrix, request.rank, seed=request.seed)) is not None:
            yield found
        yield from solve(scaled.matrix, num_vectors=request.rank, all_values=False)
    else:
        yield from solve(scaled.matrix, num_vectors=request.ceiling(scaled.weight), all_values=True)


def _attempt(
    scaled: ScaledWeight,
    request: FactorRequest,
    decomposition: Decomposition,
    products: WeightedProducts | None,
) -> Factored | Kept | None:
    """Return the result by this decomposition, or None where a more accurate one is needed."""
    rule = request.rank
    rows, columns = scaled.weight.shape
    least = rule if isinstance(rule, int) else rule.least_rank(decomposition, (rows, columns))
    if least is None:
        return None
    if least == 0:
        return _kept(Reason.RANK_ZERO, decomposition, scaled.exponent)
    align = 1 if isinstance(rule, int) else request.align
    rank = least if isinstance(rule, int) else request.aligned(least)
    ceiling = request.ceiling(scaled.weight)
    no_saving = _kept(Reason.NO_SAVING, decomposition, scaled.exponent)
    if rank > ceiling:
        return no_saving
    if not decomposition.is_accurate_for(rank):
        return None
    needs_exact_error = isinstance(rule, ErrorRank)
    decomposed = DecomposedWeight(
        scaled,
        decomposition,
        request.dtype,
        request.seed,
        None if products is None else products.weighting,
        needs_exact_error,
        products,
    )

    def attempt(multiple: int) -> Candidate:
        if multiple * align > len(decomposition.basis):
            raise NotConvergedError
        return request.method.candidate(decomposed, multiple * align)

    def accept(candidate: Candidate) -> bool:
        return not isinstance(rule, ErrorRank) or rule.allows(candidate.objective.relative)

    candidate = smallest_rank(rank // align, ceiling // align, attempt, accept)
    if not (candidate.accurate and decomposition.is_accurate_for(candidate.rank)):
        return None
    return _factored(candidate, decomposed) if accept(candidate) else no_saving


def _factored(candidate: Candidate, decomposed: DecomposedWeight) -> Factored:
    residual, objective = candidate.residual, candidate.objective
    if not (math.isfinite(residual.squared_norm) and math.isfinite(objective.squared_norm)):
        raise OutOfRangeError
    # Any factors of this rank bound the best possible error from above; only rounding could contradict that.
    best = min(decomposed.decomposition.optimal_error(candidate.rank), objective.relative)
    output_error = None
    weighted = candidate.weighted
    if weighted is not None and not math.isfinite(weighted.loss or 0.0):
        raise OutOfRangeError
    if weighted is not None and weighted.outputs is not None:
        minimized = decomposed.weighting is not None and decomposed.weighting.weighs_outputs_alone
        output_error = OutputError(
            relative_error=weighted.outputs.relative,
            squared_error=weighted.outputs.squared_error,
            squared_norm=weighted.outputs.squared_norm,
            optimal_error=best if minimized else None,
        )
    return Factored(
        factors=candidate.factors,
        rank=candidate.rank,
        relative_error=residual.relative,
        squared_error=residual.squared_error,
        squared_norm=residual.squared_norm,
        optimal_error=best if weighted is None else None,
        output_error=output_error,
        singular_values=times_power(decomposed.decomposition.singular_values, decomposed.scaled.exponent),
        decomposition=decomposed.decomposition,
        columns=candidate.columns,
        rows=candidate.rows,
        predicted_loss=weighted.loss if weighted else None,
        bias_shift=weighted.shift if weighted else None,
    )


def _kept(reason: Reason, decomposition: Decomposition, exponent: int) -> Kept:
    spectrum = times_power(decomposition.singular_values, exponent)
    known = spectrum if bool(spectrum.isfinite().all()) else None
    return Kept(reason=reason, singular_values=known)
