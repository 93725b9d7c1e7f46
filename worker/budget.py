"""The first pass over layers that share a budget: a decomposition of each, kept for the second pass."""

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from schemas.planning.budget import shares_budget, spend_budget
from schemas.planning.layer import Plan
from schemas.report import KeptReason
from schemas.spec import CompressionSpec
from schemas.spectrum import Spectrum, first_accurate
from worker.context import JobContext, LayerInputs
from worker.executor import LayerExecutor
from worker.layer import LayerOutcome
from worker.layer_cache import LayerCache
from worker.layers import finish_layers, spooled_outcome
from worker.lowrank import Kept, decompose
from worker.lowrank.scale import exponent_of
from worker.work_plan import LayerTask, WorkPlan

# Singular values, or why the layer stays dense.
Finding = Sequence[float] | KeptReason


def decompose_layers(tasks: Sequence[LayerTask], context: JobContext) -> dict[int, Finding]:
    """Return the singular values of each layer, or why it stays dense, by number; no vectors stay in memory.

    What is cached already, maybe by an attempt that was killed, is not computed again.
    """
    assert context.cache is not None
    findings: dict[int, Finding] = {}
    for task in tasks:
        spectrum = first_accurate(context.cache.spectra(task), task.layer.num_vectors)
        if spectrum is not None:
            findings[task.number] = spectrum.scaled()
            context.progress.end_decomposition(task)
    todo = [task for task in tasks if task.number not in findings]
    return findings | LayerExecutor(context.device).run(todo, DecomposePass(context, context.cache))


@dataclass(frozen=True, slots=True)
class DecomposePass:
    """Decomposes each layer and caches the decomposition for the pass that factors it."""

    context: JobContext
    cache: LayerCache

    def read(self, task: LayerTask) -> LayerInputs:
        return self.context.read(task)

    def compute(self, task: LayerTask, inputs: LayerInputs) -> tuple[Finding, Callable[[], None] | None]:
        self.context.progress.begin(task)
        assert inputs.cached is not None
        begun = time.perf_counter()
        weight = inputs.weight.to(self.context.device)
        gram = None if inputs.gram is None else inputs.gram.to(self.context.device)
        found = decompose(weight, num_vectors=task.layer.num_vectors, cache=inputs.cached, gram=gram)
        if isinstance(found, Kept):
            return found.reason.value, None
        exponent = exponent_of(weight)
        assert exponent is not None  # or it could not have been decomposed
        values = array("d", found.singular_values.tolist())
        self.cache.decomposed_s[task.number] = time.perf_counter() - begun
        return Spectrum(values, exponent, found.roundoff).scaled(), partial(inputs.cached.write, exponent)

    def write(self, task: LayerTask, result: tuple[Finding, Callable[[], None] | None]) -> Finding:
        finding, keep = result
        if keep is not None:
            keep()
        self.context.progress.end_decomposition(task)
        return finding


# What is known of layers, by tensor: the rank of one that has a rule of its own, or why one stays dense.
Settled = Mapping[str, int | KeptReason]


def finish_within_budget(
    work: WorkPlan, spec: CompressionSpec, context: JobContext
) -> tuple[WorkPlan, tuple[LayerOutcome, ...]]:
    """Finish layers that have rules of their own, look at the others, and spend what is left on them.

    A layer that stays dense against the plan, since its dtype cannot hold the factors, say, costs more than
    it was given. So the budget is spent again with that layer dense, until nothing surprises.

    Returns
    -------
    work, outcomes
        The plan with the ranks that were settled, and what came of each layer.

    Raises
    ------
    SpecError
        If the budget turns out not to suffice.
    """
    shared = [task for task in work.tasks if shares_budget(task.layer)]
    own = [task for task in work.tasks if not shares_budget(task.layer)]
    settled: dict[str, int | KeptReason] = {
        task.layer.tensor: _settled(outcome) for task, outcome in _outcomes(own, context)
    }
    # An attempt before this one may have been surprised already.
    left = ((task, spooled_outcome(task, context.spool)) for task in shared)
    settled |= {
        task.layer.tensor: _settled(outcome) for task, outcome in left if outcome and not outcome.rank
    }
    findings = decompose_layers([task for task in shared if task.layer.tensor not in settled], context)
    spectra = {}
    for task in shared:
        finding = findings.get(task.number)
        if isinstance(finding, str):
            settled[task.layer.tensor] = finding
        elif finding is not None:
            spectra[task.layer.tensor] = finding
    while True:
        final = _spent(work, spec, spectra, settled)
        outcomes = _outcomes(final.tasks, context)
        fell_back_to_dense = {
            task.layer.tensor: _settled(outcome)
            for task, outcome in outcomes
            if isinstance(task.layer.rank, int) and outcome.rank is None and task.layer.tensor not in settled
        }
        if not fell_back_to_dense:
            return final, tuple(outcome for _, outcome in outcomes)
        settled |= fell_back_to_dense


def _outcomes(tasks: Sequence[LayerTask], context: JobContext) -> list[tuple[LayerTask, LayerOutcome]]:
    outcomes = finish_layers(tasks, context)
    return [(task, outcomes[task.number]) for task in tasks]


def _settled(outcome: LayerOutcome) -> int | KeptReason:
    if outcome.rank is not None:
        return outcome.rank
    assert outcome.report.reason is not None
    return outcome.report.reason


def _spent(
    work: WorkPlan, spec: CompressionSpec, spectra: Mapping[str, Sequence[float]], final: Settled
) -> WorkPlan:
    plan = spend_budget(Plan(work.layers, work.warnings), spec, work.checkpoint, spectra, final)
    pairs = zip(work.tasks, plan.layers, strict=True)
    return replace(work, tasks=tuple(replace(task, layer=layer) for task, layer in pairs))
