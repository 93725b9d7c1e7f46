"""The door for one weight: a request in, an outcome out."""

import math
from collections.abc import Iterable

import torch

from worker.lowrank.decomposition import Decomposition, decompositions
from worker.lowrank.edge import check_weight
from worker.lowrank.lapack import NotConvergedError
from worker.lowrank.outcome import Factored, FactorRequest, Kept, Reason
from worker.lowrank.ranks import ErrorRank, optimal_error
from worker.lowrank.scale import exponent_of, times_power
from worker.lowrank.search import least
from worker.lowrank.trial import Bench, OutOfRangeError, Trial


def factor(weight: torch.Tensor, request: FactorRequest) -> Factored | Kept:
    """Factor one weight as asked, or say why it stays dense.

    Numerical trouble is an outcome and never an exception. Each step of the ladder (see
    :func:`worker.lowrank.decomposition.decompositions`) is taken only where the one before did not converge
    or was not accurate enough for the rank asked for.

    For svd the error of the factors, before a cast to half precision, exceeds the optimum by at most 1e-4 of
    it. Rounding the factors to the stored dtype has an error of its own, added in squares: about 4e-8 of ‖W‖
    in float32, 1e-16 in float64, 3e-4 in float16 and 2e-3 in bfloat16.

    Parameters
    ----------
    weight : Tensor [m, n]
        float64, float32, float16 or bfloat16; its device is where the work is done. It is not changed.
    request : FactorRequest
        Method, rank or rank rule, selector, and how the factors are stored.

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
    >>> request = FactorRequest(method="svd", rank=1, max_rank=1, dtype=torch.float32)
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
    return settle(weight, exponent, request, decompositions(weight, exponent, vectors=request.needs_vectors))


def settle(
    weight: torch.Tensor, exponent: int, request: FactorRequest, ladder: Iterable[Decomposition]
) -> Factored | Kept:
    """Body of :func:`factor`: take the first step of the ladder that is accurate enough, if any is."""
    for decomposition in ladder:
        try:
            outcome = _outcome(Bench(weight, exponent, request, decomposition))
        except OutOfRangeError:
            spectrum = _spectrum(decomposition, exponent)
            known = spectrum if bool(spectrum.isfinite().all()) else None
            return Kept(reason=Reason.OUT_OF_RANGE, singular_values=known)
        except NotConvergedError:
            continue
        if outcome is not None:
            return outcome
        del decomposition  # The next step needs the room.
    return Kept(reason=Reason.NOT_CONVERGED)


def _outcome(bench: Bench) -> Factored | Kept | None:
    """Return what comes of this decomposition, or None where a more careful one is needed."""
    rule, decomposition = bench.request.rank, bench.decomposition
    rank = rule if isinstance(rule, int) else decomposition.decide(rule)
    if rank is None or not decomposition.resolves(rank):
        return None
    ceiling = bench.request.ceiling(bench.weight)
    no_saving = Kept(reason=Reason.NO_SAVING, singular_values=_spectrum(decomposition, bench.exponent))
    if rank > ceiling:
        return no_saving

    def holds(trial: Trial) -> bool:
        return not isinstance(rule, ErrorRank) or rule.allows(trial.residual.relative)

    trial = least(rank, ceiling, bench.attempt, holds)
    if not (trial.accurate and decomposition.resolves(trial.rank)):
        return None
    return _factored(trial, bench) if holds(trial) else no_saving


def _factored(trial: Trial, bench: Bench) -> Factored:
    residual = trial.residual
    if not math.isfinite(residual.squared_norm):
        raise OutOfRangeError
    best = optimal_error(bench.decomposition.singular_values, trial.rank)
    return Factored(
        factors=trial.factors,
        rank=trial.rank,
        relative_error=residual.relative,
        squared_error=residual.squared_error,
        squared_norm=residual.squared_norm,
        # Any factors of this rank bound the optimum from above; only rounding could say otherwise.
        optimal_error=min(best, residual.relative),
        singular_values=_spectrum(bench.decomposition, bench.exponent),
        columns=trial.columns,
        rows=trial.rows,
    )


def _spectrum(decomposition: Decomposition, exponent: int) -> torch.Tensor:
    return times_power(decomposition.singular_values, exponent)
