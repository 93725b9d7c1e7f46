"""Finish layers that share a budget in two passes: decompose all of them, then factor each at its rank."""

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from schemas.planning.budget import shares_budget, spend_budget
from schemas.report import KeptReason
from schemas.spec import CompressionSpec
from schemas.spectrum import Spectrum, first_accurate
from worker.context import JobContext, LayerInputs
from worker.executor import LayerExecutor
from worker.factor_pass import finish_layers, spooled_outcome
from worker.layer import LayerOutcome, is_unchanged
from worker.layer_cache import LayerCache
from worker.lowrank import Kept, decompose
from worker.lowrank.scale import exponent_of
from worker.work_plan import LayerTask, WorkPlan

# All singular values of a layer, or the reason why it stays dense.
SpectrumOrReason = Sequence[float] | KeptReason
# The rank of a finished layer, or the reason why it stays dense.
RankOrReason = int | KeptReason


def finish_within_budget(
    work: WorkPlan, spec: CompressionSpec, context: JobContext
) -> tuple[WorkPlan, tuple[LayerOutcome, ...]]:
    """Finish layers with rules of their own, decompose the others, and spend the rest of the budget on these.

    A layer may have to stay dense against the plan, for example because its dtype cannot hold the factors. It
    then costs more than planned, so the budget is spent again with that layer dense, until all fit.

    Returns
    -------
    work, outcomes
        The plan with the final ranks, and the outcome of each layer.

    Raises
    ------
    SpecError
        If the budget turns out to be too small.
    """
    shared = [task for task in work.tasks if shares_budget(task.layer)]
    own_rule = [task for task in work.tasks if not shares_budget(task.layer)]
    settled = {task.layer.tensor: _rank_or_reason(outcome) for task, outcome in _finish(own_rule, context)}
    settled |= _spooled_reasons(shared, context)
    results = decompose_layers([task for task in shared if task.layer.tensor not in settled], context)
    spectra: dict[str, Sequence[float]] = {}
    for task in shared:
        result = results.get(task.number)
        if isinstance(result, str):
            settled[task.layer.tensor] = result
        elif result is not None:
            spectra[task.layer.tensor] = result
    while True:
        final = _spend(work, spec, spectra, settled)
        outcomes = _finish(final.tasks, context)
        fell_back_to_dense = {
            task.layer.tensor: _rank_or_reason(outcome)
            for task, outcome in outcomes
            if isinstance(task.layer.rank, int) and outcome.rank is None and task.layer.tensor not in settled
        }
        if not fell_back_to_dense:
            return final, tuple(outcome for _, outcome in outcomes)
        settled |= fell_back_to_dense


def _finish(tasks: Sequence[LayerTask], context: JobContext) -> list[tuple[LayerTask, LayerOutcome]]:
    outcomes = finish_layers(tasks, context)
    return [(task, outcomes[task.number]) for task in tasks]


def _spooled_reasons(tasks: Sequence[LayerTask], context: JobContext) -> dict[str, RankOrReason]:
    """Return the reasons of layers that fell back to dense in an earlier attempt, by tensor."""
    spooled = ((task, spooled_outcome(task, context.spool)) for task in tasks)
    return {
        task.layer.tensor: _rank_or_reason(outcome)
        for task, outcome in spooled
        if outcome and outcome.rank is None
    }


def _rank_or_reason(outcome: LayerOutcome) -> RankOrReason:
    if outcome.rank is not None:
        return outcome.rank
    assert outcome.report.reason is not None
    return outcome.report.reason


def _spend(
    work: WorkPlan,
    spec: CompressionSpec,
    spectra: Mapping[str, Sequence[float]],
    settled: Mapping[str, RankOrReason],
) -> WorkPlan:
    plan = spend_budget(work.plan, spec, work.checkpoint, spectra, settled)
    pairs = zip(work.tasks, plan.layers, strict=True)
    return replace(work, tasks=tuple(replace(task, layer=layer) for task, layer in pairs))


def decompose_layers(tasks: Sequence[LayerTask], context: JobContext) -> dict[int, SpectrumOrReason]:
    """Return the singular values of each layer, or why it stays dense, by number; no vectors stay in memory.

    Layers that are in the cache already, for example from an attempt that was killed, are not computed again.
    """
    assert context.cache is not None
    results: dict[int, SpectrumOrReason] = {}
    for task in tasks:
        spectrum = first_accurate(context.cache.spectra(task), task.layer.num_vectors)
        if spectrum is not None:
            results[task.number] = spectrum.scaled()
            context.progress.end_decomposition(task)
    todo = [task for task in tasks if task.number not in results]
    return results | LayerExecutor(context.device).run(todo, DecomposePass(context, context.cache))


@dataclass(frozen=True, slots=True)
class DecomposePass:
    """Decomposes each layer and caches the decomposition for the pass that factors it."""

    context: JobContext
    cache: LayerCache

    def read(self, task: LayerTask) -> LayerInputs:
        return self.context.read(task)

    def compute(
        self, task: LayerTask, inputs: LayerInputs
    ) -> tuple[SpectrumOrReason, Callable[[], None] | None]:
        self.context.progress.begin(task)
        assert inputs.cached is not None
        if is_unchanged(task, inputs):
            return "unchanged", None
        begun = time.perf_counter()
        weight = inputs.weight.to(self.context.device)
        found = decompose(
            weight,
            num_vectors=task.layer.num_vectors,
            cache=inputs.cached,
            statistics=inputs.statistics_on(self.context.device),
        )
        if isinstance(found, Kept):
            return found.reason.value, None
        exponent = exponent_of(weight)
        assert exponent is not None  # or it could not have been decomposed
        values = array("d", found.singular_values.tolist())
        self.cache.decomposed_s[task.number] = time.perf_counter() - begun
        return Spectrum(values, exponent, found.roundoff).scaled(), partial(inputs.cached.write, exponent)

    def write(
        self, task: LayerTask, result: tuple[SpectrumOrReason, Callable[[], None] | None]
    ) -> SpectrumOrReason:
        spectrum_or_reason, store = result
        if store is not None:
            store()
        self.context.progress.end_decomposition(task)
        return spectrum_or_reason
