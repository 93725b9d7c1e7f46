"""The door for one weight: a request in, an outcome out."""

import math
from collections.abc import Iterable, Iterator

import torch

from worker.lowrank.blas import one_pool
from worker.lowrank.decomposition import Decomposition, Memo
from worker.lowrank.edge import check_weight
from worker.lowrank.krylov import sketched
from worker.lowrank.ladder import decompositions
from worker.lowrank.lapack import NotConvergedError
from worker.lowrank.outcome import Factored, FactorRequest, Kept, Reason, Weighted
from worker.lowrank.ranks import ErrorRank
from worker.lowrank.scale import ScaledWeight, exponent_of, times_power
from worker.lowrank.search import least
from worker.lowrank.trial import Bench, OutOfRangeError, Trial
from worker.lowrank.weighted import weighted_decompositions


@one_pool()
def factor(weight: torch.Tensor, request: FactorRequest, *, memo: Memo | None = None) -> Factored | Kept:
    """Factor one weight as asked, or say why it stays dense.

    Numerical trouble is an outcome and never an exception. Each step of the ladder (see
    :func:`worker.lowrank.ladder.decompositions`) is taken only where the one before did not converge or was
    not accurate enough for the rank asked for.

    For svd the error of the factors, before a cast to half precision, exceeds the optimum by at most 1e-4 of
    it, or 1e-3 where a sketch was enough. Rounding the factors to the stored dtype has an error of its own,
    added in squares: about 4e-8 of ‖W‖ in float32, 1e-16 in float64, 3e-4 in float16 and 2e-3 in bfloat16.
    With a Gram matrix the same is said of the error of the outputs, as far as that matrix tells it.

    Parameters
    ----------
    weight : Tensor [m, n]
        float64, float32, float16 or bfloat16; its device is where the work is done. It is not changed.
    request : FactorRequest
        Method, rank or rank rule, selector, and how the factors are stored.
    memo : Memo or None
        Decompositions of this weight from before, where the request says to what extent they are made; those
        that are computed are put there. The bytes that come are the same whatever is in it.

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
    scaled = ScaledWeight(weight, exponent)
    return settle(scaled, request, _ladder(scaled, request, memo))


@one_pool()
def decompose(
    weight: torch.Tensor, *, extent: int, memo: Memo | None = None, gram: torch.Tensor | None = None
) -> Decomposition | Kept:
    """Decompose one weight for any request that may come, or say why it stays dense.

    Parameters
    ----------
    weight : Tensor [m, n]
        As for :func:`factor`.
    extent : int
        How many singular vectors, 1 ≤ r ≤ min(m, n).
    memo : Memo or None
        As for :func:`factor`.
    gram : Tensor [n, n] or None
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
    scaled = ScaledWeight(weight, exponent)
    if gram is None:
        ladder = decompositions(scaled.matrix, extent=extent, whole=True, memo=memo)
    else:
        ladder = weighted_decompositions(weight, exponent, gram, extent=extent, memo=memo)
    found = None
    for found in ladder:
        if found.resolves(extent):
            break
    return found or Kept(reason=Reason.NOT_CONVERGED)


def settle(scaled: ScaledWeight, request: FactorRequest, ladder: Iterable[Decomposition]) -> Factored | Kept:
    """Body of :func:`factor`: take the first step of the ladder that is accurate enough, if any is."""
    for decomposition in ladder:
        try:
            outcome = _outcome(Bench(scaled, request, decomposition))
        except OutOfRangeError:
            return _kept(Reason.OUT_OF_RANGE, decomposition, scaled.exponent)
        except NotConvergedError:
            continue
        if outcome is not None:
            return outcome
        del decomposition  # The next step needs the room.
    return Kept(reason=Reason.NOT_CONVERGED)


def _ladder(scaled: ScaledWeight, request: FactorRequest, memo: Memo | None) -> Iterator[Decomposition]:
    if request.gram is not None:
        extent = request.extent or request.ceiling(scaled.weight)
        yield from weighted_decompositions(
            scaled.weight, scaled.exponent, request.gram, extent=extent, memo=memo if request.extent else None
        )
    elif request.extent is not None:
        yield from decompositions(scaled.matrix, extent=request.extent, whole=True, memo=memo)
    elif isinstance(request.rank, int):
        if (found := sketched(scaled.matrix, request.rank, seed=request.seed)) is not None:
            yield found
        yield from decompositions(scaled.matrix, extent=request.rank, whole=False)
    else:
        yield from decompositions(scaled.matrix, extent=request.ceiling(scaled.weight), whole=True)


def _outcome(bench: Bench) -> Factored | Kept | None:
    """Return what comes of this decomposition, or None where a more careful one is needed."""
    rule, decomposition = bench.request.rank, bench.decomposition
    decided = rule if isinstance(rule, int) else decomposition.decide(rule)
    if decided is None:
        return None
    align = 1 if isinstance(rule, int) else bench.request.align
    rank = decided if isinstance(rule, int) else bench.request.aligned(decided)
    ceiling = bench.request.ceiling(bench.scaled.weight)
    no_saving = _kept(Reason.NO_SAVING, decomposition, bench.scaled.exponent)
    if rank > ceiling:
        return no_saving
    if not decomposition.resolves(rank):
        return None

    def holds(trial: Trial) -> bool:
        return not isinstance(rule, ErrorRank) or rule.allows(trial.judged.relative)

    trial = least(rank // align, ceiling // align, lambda times: bench.attempt(times * align), holds)
    if not (trial.accurate and decomposition.resolves(trial.rank)):
        return None
    return _factored(trial, bench) if holds(trial) else no_saving


def _factored(trial: Trial, bench: Bench) -> Factored:
    residual, judged = trial.residual, trial.judged
    if not (math.isfinite(residual.squared_norm) and math.isfinite(judged.squared_norm)):
        raise OutOfRangeError
    # Any factors of this rank bound the optimum from above; only rounding could say otherwise.
    optimum = min(bench.decomposition.tail(trial.rank), judged.relative)
    weighted = None
    if trial.weighted is not None:
        weighted = Weighted(
            relative_error=judged.relative,
            squared_error=judged.squared_error,
            squared_norm=judged.squared_norm,
            optimal_error=optimum,
        )
    return Factored(
        factors=trial.factors,
        rank=trial.rank,
        relative_error=residual.relative,
        squared_error=residual.squared_error,
        squared_norm=residual.squared_norm,
        optimal_error=optimum if weighted is None else None,
        weighted=weighted,
        singular_values=times_power(bench.decomposition.singular_values, bench.scaled.exponent),
        decomposition=bench.decomposition,
        columns=trial.columns,
        rows=trial.rows,
    )


def _kept(reason: Reason, decomposition: Decomposition, exponent: int) -> Kept:
    spectrum = times_power(decomposition.singular_values, exponent)
    known = spectrum if bool(spectrum.isfinite().all()) else None
    return Kept(reason=reason, singular_values=known)
