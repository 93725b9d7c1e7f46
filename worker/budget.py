"""Finish layers that share a budget: find their spectra, then factor each by its form at its rank."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from schemas.planning.budget import shares_budget, spend_budget
from schemas.planning.layers import Plan
from schemas.report import KeptReason
from schemas.spec import CompressionSpec
from worker.context import JobContext
from worker.factor_pass import finish_layers, spooled_outcome
from worker.layer import LayerOutcome
from worker.spectra import SpectraFinder
from worker.work_plan import LayerTask, WorkPlan

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
    spectra = SpectraFinder(context)
    spectra.begin([task for task in shared if task.layer.tensor not in settled])
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
    work: WorkPlan, spec: CompressionSpec, spectra: SpectraFinder, settled: Mapping[str, RankOrReason]
) -> WorkPlan:
    """Spend the budget, and decompose what decides how, until nothing is missing."""
    tasks = {task.layer.tensor: task for task in work.tasks}
    open_plan = replace(work.plan, layers=tuple(map(spectra.possible, work.layers)))
    while True:
        plan = spend_budget(open_plan, spec, work.checkpoint, spectra.known, {**spectra.reasons, **settled})
        if isinstance(plan, Plan):
            pairs = zip(work.tasks, plan.layers, strict=True)
            return replace(work, tasks=tuple(replace(task, layer=layer) for task, layer in pairs))
        spectra.decompose((tasks[tensor], form) for tensor, form in plan.forms)
