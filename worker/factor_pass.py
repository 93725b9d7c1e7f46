"""Factor the layers of a job, and resume from those that the spool has already."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import ValidationError

from worker.checkpoint.spool import LayerSpool
from worker.context import JobContext, LayerInputs
from worker.executor import LayerExecutor
from worker.layer import LayerOutcome, factor_layer, kept_outcome
from worker.lowrank.scale import exponent_of
from worker.pairs import cut_pairs
from worker.work_plan import LayerTask


def finish_layers(tasks: Sequence[LayerTask], context: JobContext) -> dict[int, LayerOutcome]:
    """Load each layer from the spool, or factor it and store it there; return the outcomes by number."""
    outcomes = {task.number: outcome for task in tasks if (outcome := _finished_outcome(task, context.spool))}
    for task in tasks:
        if task.number in outcomes:
            context.progress.end(task)
    todo = [task for task in tasks if task.number not in outcomes]
    unfinished = {task.layer.pair for task in todo} - {None}
    members = [task for task in tasks if task.layer.pair in unfinished]
    outcomes |= cut_pairs(members, context)
    layers = [task for task in todo if task.layer.pair is None]
    return outcomes | LayerExecutor(context.device).run(layers, FactorPass(context))


def spooled_outcome(task: LayerTask, spool: LayerSpool) -> LayerOutcome | None:
    """Return the outcome of a layer that an earlier attempt finished."""
    outcome_json = spool.get(task.number)
    try:
        return LayerOutcome.model_validate_json(outcome_json) if outcome_json else None
    except ValidationError:
        # Another release wrote it; factor the layer again.
        return None


def _finished_outcome(task: LayerTask, spool: LayerSpool) -> LayerOutcome | None:
    if task.layer.reason is not None:
        return kept_outcome(task, task.layer.reason)
    outcome = spooled_outcome(task, spool)
    # A layer that had to stay dense changes the ranks of others under a budget; their old factors do not fit.
    planned = task.layer.rank
    if outcome is None or outcome.rank is None:
        return outcome
    fits = outcome.rank == planned or not isinstance(planned, int)
    return outcome if fits and outcome.report.method == task.layer.form.name else None


@dataclass(frozen=True, slots=True)
class LayerToStore:
    """A layer to be written: its outcome, its tensors, and a call that stores its new decompositions."""

    outcome: LayerOutcome
    tensors: tuple[torch.Tensor, ...]
    store_decompositions: Callable[[], None] | None


@dataclass(frozen=True, slots=True)
class FactorPass:
    """Factors each layer as planned and stores it in the spool."""

    context: JobContext

    def read(self, task: LayerTask) -> LayerInputs:
        return self.context.read(task)

    def compute(self, task: LayerTask, inputs: LayerInputs) -> LayerToStore:
        self.context.progress.begin(task)
        cached = inputs.cached
        outcome, tensors = factor_layer(task, inputs, seed=self.context.seed, device=self.context.device)
        if cached is None:
            return LayerToStore(outcome, tensors, None)
        if cached.found:
            return LayerToStore(_with_cached(outcome, cached.decomposed_s), tensors, None)
        exponent = exponent_of(inputs.weight)
        store = None if exponent is None else partial(cached.write, exponent)
        return LayerToStore(outcome, tensors, store)

    def write(self, task: LayerTask, result: LayerToStore) -> LayerOutcome:
        if result.store_decompositions is not None:
            result.store_decompositions()
        self.context.spool.put(task.number, result.outcome.model_dump_json(), result.tensors)
        self.context.progress.end(task)
        return result.outcome


def _with_cached(outcome: LayerOutcome, decomposed_s: float | None) -> LayerOutcome:
    """Mark the decomposition as cached, or add the time that an earlier pass of this attempt spent on it."""
    report = outcome.report
    if decomposed_s is not None:
        report = report.model_copy(update={"seconds": report.seconds + decomposed_s})
    elif report.decomposition is not None:
        report = report.model_copy(update={"decomposition": "cached"})
    return outcome.model_copy(update={"report": report})
