"""Finishing layers: each is taken from the spool, or done and put there."""

from collections.abc import Callable, Sequence
from functools import partial

from pydantic import ValidationError

from worker.checkpoint.spool import LayerSpool
from worker.context import JobContext, LayerInputs
from worker.executor import LayerExecutor
from worker.layer import LayerOutcome, factor_layer, kept_outcome
from worker.lowrank.scale import exponent_of
from worker.work_plan import LayerTask


def finish_layers(tasks: Sequence[LayerTask], context: JobContext) -> dict[int, LayerOutcome]:
    """Take each layer from the spool, or do it and put it there; return the outcomes by number."""
    outcomes = {task.number: outcome for task in tasks if (outcome := _known(task, context.spool))}
    for task in tasks:
        if task.number in outcomes:
            context.progress.end(task)
    todo = [task for task in tasks if task.number not in outcomes]
    do = partial(_finish, context)
    executor = LayerExecutor(
        context.given, do, begin=context.progress.begin, end=context.progress.end, device=context.device
    )
    return outcomes | executor.run(todo)


def spooled_outcome(task: LayerTask, spool: LayerSpool) -> LayerOutcome | None:
    """Return what an attempt before this one left of a layer."""
    spooled = spool.get(task.number)
    try:
        return LayerOutcome.model_validate_json(spooled.outcome_json) if spooled else None
    except ValidationError:
        # Another release wrote it: the layer is done again.
        return None


def _known(task: LayerTask, spool: LayerSpool) -> LayerOutcome | None:
    if task.layer.reason is not None:
        return kept_outcome(task, task.layer.reason)
    outcome = spooled_outcome(task, spool)
    # A budget that is spent again, because of a layer that had to stay dense, gives others other ranks.
    planned = task.layer.rank
    fits = outcome is None or outcome.rank is None or outcome.rank == planned or not isinstance(planned, int)
    return outcome if fits else None


def _finish(
    context: JobContext, task: LayerTask, given: LayerInputs
) -> tuple[LayerOutcome, Callable[[], None]]:
    memo = given.memo
    outcome, factors = factor_layer(
        task, given.weight, given.gram, seed=context.seed, device=context.device, memo=memo
    )
    exponent = exponent_of(given.weight) if memo and not memo.found else None
    if memo and memo.found:
        outcome = _with_what_was_known(outcome, memo.decomposed_s)
    text = outcome.model_dump_json()

    def write() -> None:
        if memo and exponent is not None:
            memo.write(exponent)
        context.spool.put(task.number, text, factors)

    return outcome, write


def _with_what_was_known(outcome: LayerOutcome, decomposed_s: float | None) -> LayerOutcome:
    """Say that the decomposition was there, or count the time that it took in the pass before this one."""
    report = outcome.report
    if decomposed_s is not None:
        report = report.model_copy(update={"seconds": report.seconds + decomposed_s})
    elif report.decomposition is not None:
        report = report.model_copy(update={"decomposition": "cached"})
    return outcome.model_copy(update={"report": report})
