"""The first pass over layers that share a budget: a decomposition of each, kept for the second pass."""

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from schemas.planning.budget import shares_budget, spend
from schemas.planning.layer import Plan
from schemas.report import KeptReason
from schemas.spec import CompressionSpec
from schemas.spectrum import Spectrum, careful_enough
from worker.context import Given, Workshop
from worker.executor import Hands
from worker.layer import LayerOutcome
from worker.layers import finish_layers, spooled_outcome
from worker.lowrank import Kept, decompose
from worker.lowrank.scale import exponent_of
from worker.work_plan import LayerTask, WorkPlan

# Singular values, or why the layer stays dense.
Finding = Sequence[float] | KeptReason


def survey(tasks: Sequence[LayerTask], shop: Workshop) -> dict[int, Finding]:
    """Return what each layer turns out to be, by its number; no vectors stay in memory.

    What lies on the shelf already, maybe from an attempt that was killed, is not computed again.
    """
    assert shop.shelf is not None
    findings: dict[int, Finding] = {}
    for task in tasks:
        known = careful_enough(shop.shelf.spectra(task), task.layer.extent)
        if known is not None:
            findings[task.number] = known.scaled()
            shop.meter.end_survey(task)
    todo = [task for task in tasks if task.number not in findings]
    do = partial(_decompose, shop)
    hands = Hands(shop.given, do, begin=shop.meter.begin, end=shop.meter.end_survey, device=shop.device)
    return findings | hands.go_through(todo)


def _decompose(shop: Workshop, task: LayerTask, given: Given) -> tuple[Finding, Callable[[], None]]:
    assert shop.shelf is not None
    assert given.memo is not None
    begun = time.perf_counter()
    weight = given.weight.to(shop.device)
    gram = None if given.gram is None else given.gram.to(shop.device)
    found = decompose(weight, extent=task.layer.extent, memo=given.memo, gram=gram)
    if isinstance(found, Kept):
        return found.reason.value, lambda: None
    exponent = exponent_of(weight)
    assert exponent is not None  # or it could not have been decomposed
    values = array("d", found.singular_values.tolist())
    shop.shelf.surveyed_s[task.number] = time.perf_counter() - begun
    return Spectrum(values, exponent, found.noise).scaled(), partial(given.memo.write, exponent)


# What is known of layers, by tensor: the rank of one that has a rule of its own, or why one stays dense.
Known = Mapping[str, int | KeptReason]


def finish_within_budget(
    work: WorkPlan, spec: CompressionSpec, shop: Workshop
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
    known: dict[str, int | KeptReason] = {
        task.layer.tensor: _came_to(outcome) for task, outcome in _outcomes(own, shop)
    }
    # An attempt before this one may have been surprised already.
    left = ((task, spooled_outcome(task, shop.spool)) for task in shared)
    known |= {task.layer.tensor: _came_to(outcome) for task, outcome in left if outcome and not outcome.rank}
    findings = survey([task for task in shared if task.layer.tensor not in known], shop)
    spectra = {}
    for task in shared:
        finding = findings.get(task.number)
        if isinstance(finding, str):
            known[task.layer.tensor] = finding
        elif finding is not None:
            spectra[task.layer.tensor] = finding
    while True:
        settled = _spent(work, spec, spectra, known)
        outcomes = _outcomes(settled.tasks, shop)
        surprises = {
            task.layer.tensor: _came_to(outcome)
            for task, outcome in outcomes
            if isinstance(task.layer.rank, int) and not outcome.rank and task.layer.tensor not in known
        }
        if not surprises:
            return settled, tuple(outcome for _, outcome in outcomes)
        known |= surprises


def _outcomes(tasks: Sequence[LayerTask], shop: Workshop) -> list[tuple[LayerTask, LayerOutcome]]:
    outcomes = finish_layers(tasks, shop)
    return [(task, outcomes[task.number]) for task in tasks]


def _came_to(outcome: LayerOutcome) -> int | KeptReason:
    came_to = outcome.rank or outcome.report.reason
    assert came_to is not None
    return came_to


def _spent(
    work: WorkPlan, spec: CompressionSpec, spectra: Mapping[str, Sequence[float]], known: Known
) -> WorkPlan:
    plan = spend(Plan(work.layers, work.warnings), spec, work.checkpoint.files, spectra, known)
    pairs = zip(work.tasks, plan.layers, strict=True)
    return replace(work, tasks=tuple(replace(task, layer=layer) for task, layer in pairs))
