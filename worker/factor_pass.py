"""Factor the layers of a job, and resume from those that the spool has already."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import ValidationError

from schemas.planning.layer import LayerPlan
from schemas.report import LayerReport
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
        else:
            context.progress.redo(task)
    todo = [task for task in tasks if task.number not in outcomes]
    unfinished = {task.layer.pair for task in todo} - {None}
    members = [task for task in tasks if task.layer.pair in unfinished]
    outcomes |= cut_pairs(members, context)
    layers = [task for task in todo if task.layer.pair is None]
    return outcomes | LayerExecutor(context.device).run(layers, FactorPass(context))


def spooled_outcome(task: LayerTask, spool: LayerSpool) -> LayerOutcome | None:
    """Return the outcome of a layer that an earlier attempt finished, if it is of this very weight."""
    outcome_json = spool.get(task.number)
    try:
        outcome = LayerOutcome.model_validate_json(outcome_json) if outcome_json else None
    except ValidationError:
        # Another release wrote it; factor the layer again.
        return None
    return outcome if outcome is not None and _is_of(task.layer, outcome.report) else None


def _is_of(layer: LayerPlan, report: LayerReport) -> bool:
    planned = (layer.tensor, layer.shape, layer.dtype, layer.transposed, layer.calibrated)
    return planned == (report.tensor, report.shape, report.dtype, report.transposed, report.calibrated)


def _finished_outcome(task: LayerTask, spool: LayerSpool) -> LayerOutcome | None:
    if task.layer.reason is not None:
        return kept_outcome(task, task.layer.reason)
    outcome = spooled_outcome(task, spool)
    if outcome is None or outcome.rank is None:
        return outcome
    layer, report = task.layer, outcome.report
    # A layer that had to stay dense changes the ranks of others under a budget; their old factors do not fit.
    fits = outcome.rank == layer.rank or not isinstance(layer.rank, int)
    same_form = (report.method, report.selector) == (layer.form.name, layer.form.selector)
    return outcome if fits and same_form and _is_stored(task, outcome.rank, spool) else None


def _is_stored(task: LayerTask, rank: int, spool: LayerSpool) -> bool:
    """Whether the spool has the tensors that the layer is replaced by at this rank."""
    expected = [(tensor.dtype, tensor.shape) for tensor in task.layer.stored_tensors(rank)]
    if task.bias is not None:
        _, bias = task.bias
        expected.append((bias.dtype, bias.shape if task.layer.cut_bias is None else (rank,)))
    return expected == [(tensor.dtype, tensor.shape) for tensor in spool.factors(task.number)]


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
        if cached is None or not task.layer.form.has_decomposition:
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
