"""Finishing all layers: each is taken from the spool, or done and put there."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import ValidationError

from worker.checkpoint.spool import LayerSpool
from worker.decompositions import LayerMemo, Shelf
from worker.hands import Hands
from worker.layer import LayerOutcome, factor_layer, kept_outcome
from worker.lowrank.scale import exponent_of
from worker.plan import LayerTask, WorkPlan
from worker.progress import Meter
from worker.sources import Sources


@dataclass(frozen=True, slots=True)
class Given:
    """What a layer is made of: weight [outputs, inputs], Gram matrix of its inputs, and what is known."""

    weight: torch.Tensor
    gram: torch.Tensor | None
    memo: LayerMemo | None


def finish_layers(
    work: WorkPlan,
    sources: Sources,
    spool: LayerSpool,
    shelf: Shelf | None,
    meter: Meter,
    *,
    seed: int,
    device: torch.device,
) -> tuple[LayerOutcome, ...]:
    """Take each layer from the spool, or do it and put it there.

    Parameters
    ----------
    work
        The plan.
    sources
        Where the layers are read.
    spool
        Where finished layers are; a layer counts as done once it is there.
    shelf
        Where decompositions are found and kept, if they are.
    meter
        Told of each layer that begins and ends; what its observer raises stops the work.
    seed
        Seeds the sampling selectors.
    device
        Where the numerics run.

    Returns
    -------
    outcomes
        One for each layer, in the plan's order.
    """
    outcomes = {task.number: outcome for task in work.tasks if (outcome := _known(task, spool))}
    for task in work.tasks:
        if task.number in outcomes:
            meter.end(task)
    todo = [task for task in work.tasks if task.number not in outcomes]

    def do(task: LayerTask, given: Given) -> tuple[LayerOutcome, Callable[[], None]]:
        memo = given.memo
        outcome, factors = factor_layer(task, given.weight, given.gram, seed=seed, device=device, memo=memo)
        exponent = exponent_of(given.weight) if memo and not memo.found else None

        def write() -> None:
            if memo and exponent is not None:
                memo.write(exponent)
            spool.put(task.number, outcome.model_dump_json(), factors)

        return outcome, write

    read = partial(_read, sources, shelf)
    hands = Hands(read, do, begin=meter.begin, end=meter.end, device=device)
    outcomes |= hands.go_through(todo)
    return tuple(outcomes[task.number] for task in work.tasks)


def _read(sources: Sources, shelf: Shelf | None, task: LayerTask) -> Given:
    memo = shelf.memo(task) if shelf else None
    if memo:
        memo.get(0)
    return Given(sources.weight(task), sources.gram(task), memo)


def _known(task: LayerTask, spool: LayerSpool) -> LayerOutcome | None:
    if task.layer.reason is not None:
        return kept_outcome(task, task.layer.reason)
    spooled = spool.get(task.number)
    try:
        return LayerOutcome.model_validate_json(spooled.outcome_json) if spooled else None
    except ValidationError:
        # Another release wrote it: the layer is done again.
        return None
