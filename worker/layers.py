"""Finishing all layers: large ones one after another on all threads, small ones two at a time on one each."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import groupby
from typing import TypeVar

import torch
from pydantic import ValidationError

from worker.checkpoint.reader import CheckpointReader
from worker.checkpoint.spool import LayerSpool
from worker.layer import LayerOutcome, factor_layer, kept_outcome
from worker.plan import LayerTask, WorkPlan
from worker.progress import Meter, Observer

# Flops and elements up to which a layer is small: one thread is as fast there as several on an idle machine,
# and on a busy one several wait for each other at every step (3 s instead of 15 ms were seen for 384 x 384).
SMALL_WORK = 2**30
SMALL_ELEMENTS = 2**22
# No more, so that a killed attempt has at most two layers to do again.
SIDE_BY_SIDE = 2
T = TypeVar("T")


def finish_layers(
    work: WorkPlan, spool: LayerSpool, *, seed: int, device: torch.device, observe: Observer
) -> tuple[tuple[LayerOutcome, ...], Meter]:
    """Take each layer from the spool, or do it and put it there.

    Parameters
    ----------
    work
        The plan.
    spool
        Where finished layers are; a layer counts as done once it is there.
    seed
        Seeds the sampling selectors.
    device
        Where the numerics run.
    observe
        Told of the progress before each layer; what it raises stops the work.

    Returns
    -------
    outcomes, meter
        One outcome for each layer in the plan's order, and the meter, which goes on to tell the progress.
    """
    outcomes = {task.number: outcome for task in work.tasks if (outcome := _known(task, spool))}
    meter = Meter(work.tasks, observe, finished=outcomes.keys())
    todo = [task for task in work.tasks if task.number not in outcomes]
    with ExitStack() as readers:
        hand = _Hand(spool, meter, readers, seed=seed, device=device)
        for small, tasks in groupby(todo, key=lambda task: _is_small(task, device)):
            finish = hand.side_by_side if small else hand.one_by_one
            outcomes |= finish(tuple(tasks))
    meter.end_all()
    return tuple(outcomes[task.number] for task in work.tasks), meter


def _known(task: LayerTask, spool: LayerSpool) -> LayerOutcome | None:
    if task.layer.reason is not None:
        return kept_outcome(task, task.layer.reason)
    spooled = spool.get(task.number)
    try:
        return LayerOutcome.model_validate_json(spooled.outcome_json) if spooled else None
    except ValidationError:
        # Another release wrote it: the layer is done again.
        return None


def _is_small(task: LayerTask, device: torch.device) -> bool:
    few = task.layer.parameters_before <= SMALL_ELEMENTS
    return device.type == "cpu" and few and task.cost <= SMALL_WORK


class _Hand:
    """What every layer needs to be done."""

    def __init__(
        self, spool: LayerSpool, meter: Meter, readers: ExitStack, *, seed: int, device: torch.device
    ) -> None:
        self._spool = spool
        self._meter = meter
        self._seed = seed
        self._device = device
        # One reader for each file: its header is parsed once.
        self._reader = cache(lambda path: readers.enter_context(CheckpointReader(path)))

    def one_by_one(self, tasks: Sequence[LayerTask]) -> dict[int, LayerOutcome]:
        """Factor one at a time; meanwhile the next weight is read and the last layer written."""
        outcomes = {}
        with _pool(1, "write") as writing, _pool(1, "read") as reading:
            weights = _ahead(reading.submit(self._read, task) for task in tasks)
            written: Future[None] | None = None
            for task, weight in zip(tasks, weights, strict=True):
                self._meter.begin(task)
                outcome, factors = factor_layer(task, weight.result(), seed=self._seed, device=self._device)
                if written is not None:
                    written.result()
                written = writing.submit(self._spool.put, task.number, outcome.model_dump_json(), factors)
                outcomes[task.number] = outcome
                self._meter.end(task)
            if written is not None:
                written.result()
        return outcomes

    def side_by_side(self, tasks: Sequence[LayerTask]) -> dict[int, LayerOutcome]:
        """Read, factor and write two at a time."""
        width = min(SIDE_BY_SIDE, torch.get_num_threads())
        # Torch keeps the number of threads for each thread of ours.
        with _pool(width, "layer", lambda: torch.set_num_threads(1)) as pool:
            return dict(pool.map(self._do, tasks))

    def _do(self, task: LayerTask) -> tuple[int, LayerOutcome]:
        self._meter.begin(task)
        outcome, factors = factor_layer(task, self._read(task), seed=self._seed, device=self._device)
        self._spool.put(task.number, outcome.model_dump_json(), factors)
        self._meter.end(task)
        return task.number, outcome

    def _read(self, task: LayerTask) -> torch.Tensor:
        return self._reader(task.source.path).read(task.tensor.name)


@contextmanager
def _pool(
    width: int, name: str, initializer: Callable[[], None] | None = None
) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(width, name, initializer)
    try:
        yield pool
    finally:
        # What has not begun when the work is stopped does not begin.
        pool.shutdown(cancel_futures=True)


def _ahead(begun: Iterator[T]) -> Iterator[T]:
    """Yield the same, always with the next one begun already."""
    current = next(begun, None)
    while current is not None:
        following = next(begun, None)
        yield current
        current = following
