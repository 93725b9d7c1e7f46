"""Finishing all layers: each is taken from the spool, or done and put there."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial

import torch
from pydantic import ValidationError

from worker.checkpoint.reader import CheckpointReader
from worker.checkpoint.spool import LayerSpool
from worker.decompositions import LayerMemo, Shelf
from worker.hands import Hands
from worker.layer import LayerOutcome, factor_layer, kept_outcome
from worker.lowrank.scale import exponent_of
from worker.plan import LayerTask, WorkPlan
from worker.progress import Meter

ReadWeight = Callable[[LayerTask], torch.Tensor]
WithMemo = tuple[torch.Tensor, LayerMemo | None]


def finish_layers(
    work: WorkPlan,
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

    def do(task: LayerTask, given: WithMemo) -> tuple[LayerOutcome, Callable[[], None]]:
        weight, memo = given
        outcome, factors = factor_layer(task, weight, seed=seed, device=device, memo=memo)
        exponent = exponent_of(weight) if memo and not memo.found else None

        def write() -> None:
            if memo and exponent is not None:
                memo.write(exponent)
            spool.put(task.number, outcome.model_dump_json(), factors)

        return outcome, write

    with weights() as read_weight:
        read = partial(_read, read_weight, shelf)
        hands = Hands(read, do, begin=meter.begin, end=meter.end, device=device)
        outcomes |= hands.go_through(todo)
    return tuple(outcomes[task.number] for task in work.tasks)


def _read(read_weight: ReadWeight, shelf: Shelf | None, task: LayerTask) -> WithMemo:
    memo = shelf.memo(task) if shelf else None
    if memo:
        memo.get(0)
    return read_weight(task), memo


@contextmanager
def weights() -> Iterator[ReadWeight]:
    """Yield what reads a layer's weight; each file is opened and its header parsed once."""
    with ExitStack() as readers:
        open_file = cache(lambda path: readers.enter_context(CheckpointReader(path)))
        yield lambda task: open_file(task.source.path).read(task.tensor.name)


def _known(task: LayerTask, spool: LayerSpool) -> LayerOutcome | None:
    if task.layer.reason is not None:
        return kept_outcome(task, task.layer.reason)
    spooled = spool.get(task.number)
    try:
        return LayerOutcome.model_validate_json(spooled.outcome_json) if spooled else None
    except ValidationError:
        # Another release wrote it: the layer is done again.
        return None
