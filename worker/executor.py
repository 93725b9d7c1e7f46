"""Run a pass over layers: large ones in sequence on all threads, small ones two at a time on one each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import Protocol, TypeVar

import torch

from worker.work_plan import LayerTask

# Flops and elements up to which a layer is small: one thread is as fast there as several on an idle machine,
# and on a busy one several wait for each other at every step (3 s instead of 15 ms were seen for 384 x 384).
SMALL_WORK = 2**30
SMALL_ELEMENTS = 2**22
# No more, so that a killed attempt has at most two layers to do again.
SIDE_BY_SIDE = 2
T = TypeVar("T")
Inputs = TypeVar("Inputs")
Result = TypeVar("Result")
Outcome = TypeVar("Outcome")
Outcome_co = TypeVar("Outcome_co", covariant=True)


class LayerPass(Protocol[Inputs, Result, Outcome_co]):
    """What is done to every layer. The three steps of different layers may run at the same time."""

    def read(self, task: LayerTask) -> Inputs:
        """Read what the layer needs, maybe ahead of time."""

    def compute(self, task: LayerTask, inputs: Inputs) -> Result:
        """Do the work; an exception stops the whole pass."""

    def write(self, task: LayerTask, result: Result) -> Outcome_co:
        """Store the result, and return what is to be remembered of it."""


class LayerExecutor:
    """Runs a pass over layers: large ones in sequence on all threads, small ones side by side."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def run(
        self, tasks: Iterable[LayerTask], layer_pass: LayerPass[Inputs, Result, Outcome]
    ) -> dict[int, Outcome]:
        """Return the outcome of each layer, by number, once all of them are written."""
        outcomes: dict[int, Outcome] = {}
        for small, alike in groupby(tasks, key=self._is_small):
            run = _side_by_side if small else _in_sequence
            outcomes |= run(tuple(alike), layer_pass)
        return outcomes

    def _is_small(self, task: LayerTask) -> bool:
        few = task.elements <= SMALL_ELEMENTS
        return self._device.type == "cpu" and few and task.cost <= SMALL_WORK


def _in_sequence(
    tasks: Sequence[LayerTask], layer_pass: LayerPass[Inputs, Result, Outcome]
) -> dict[int, Outcome]:
    """Compute one layer at a time; meanwhile the next one is read and the last one written."""
    outcomes: dict[int, Outcome] = {}
    with _pool(1, "write") as writing, _pool(1, "read") as reading:
        inputs = _ahead(reading.submit(layer_pass.read, task) for task in tasks)
        written: tuple[int, Future[Outcome]] | None = None
        for task, future in zip(tasks, inputs, strict=True):
            result = layer_pass.compute(task, future.result())
            if written is not None:
                outcomes[written[0]] = written[1].result()
            written = task.number, writing.submit(layer_pass.write, task, result)
            del result  # Only the writer still needs it.
        if written is not None:
            outcomes[written[0]] = written[1].result()
    return outcomes


def _side_by_side(
    tasks: Sequence[LayerTask], layer_pass: LayerPass[Inputs, Result, Outcome]
) -> dict[int, Outcome]:
    """Read, compute and write two layers at a time."""

    def run(task: LayerTask) -> tuple[int, Outcome]:
        return task.number, layer_pass.write(task, layer_pass.compute(task, layer_pass.read(task)))

    width = min(SIDE_BY_SIDE, torch.get_num_threads())
    # Torch keeps the number of threads for each thread of ours.
    with _pool(width, "layer", lambda: torch.set_num_threads(1)) as pool:
        return dict(pool.map(run, tasks))


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
