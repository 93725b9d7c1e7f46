"""Run a pass over layers: large ones in sequence on all threads, small ones in parallel on one each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import Protocol, TypeVar

import torch

from worker.work_plan import LayerTask

# A layer is small up to this many flops and elements. For a small layer, one thread is as fast as several on
# an idle machine; on a busy one, several threads wait for each other at every step (384 x 384 has taken 3 s
# instead of 15 ms).
SMALL_WORK = 2**30
SMALL_ELEMENTS = 2**22
# Only two, so that a killed attempt has at most two layers, or groups of tiny ones, to repeat.
PARALLEL_LAYERS = 2
# A group has at most so many layers and flops, a fraction of a second. The same step for many layers in a row
# takes less than half the time, since its code and data are then in the processor's caches.
GROUP_LAYERS = 32
GROUP_WORK = 2**25
T = TypeVar("T")
Inputs = TypeVar("Inputs")
Result = TypeVar("Result")
Outcome = TypeVar("Outcome")
Outcome_co = TypeVar("Outcome_co", covariant=True)


class LayerPass(Protocol[Inputs, Result, Outcome_co]):
    """Three steps that are applied to each layer; steps of different layers may run at the same time."""

    def read(self, task: LayerTask) -> Inputs:
        """Read the inputs of the layer, maybe ahead of time."""

    def compute(self, task: LayerTask, inputs: Inputs) -> Result:
        """Compute the result; an exception stops the pass."""

    def write(self, task: LayerTask, result: Result) -> Outcome_co:
        """Store the result, and return a small outcome to keep in memory."""


class LayerExecutor:
    """Runs passes over layers on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def run(
        self, tasks: Iterable[LayerTask], layer_pass: LayerPass[Inputs, Result, Outcome]
    ) -> dict[int, Outcome]:
        """Return the outcome of each layer, by number, once all results are written."""
        outcomes: dict[int, Outcome] = {}
        for are_small, group in groupby(tasks, key=self._is_small):
            run = _in_parallel if are_small else _in_sequence
            outcomes |= run(tuple(group), layer_pass)
        return outcomes

    def _is_small(self, task: LayerTask) -> bool:
        if self._device.type != "cpu":
            return False
        return task.elements <= SMALL_ELEMENTS and task.cost <= SMALL_WORK


def _in_sequence(
    tasks: Sequence[LayerTask], layer_pass: LayerPass[Inputs, Result, Outcome]
) -> dict[int, Outcome]:
    """Compute one layer at a time; meanwhile read the next one and write the previous one."""
    outcomes: dict[int, Outcome] = {}
    # Without `_pool`: a layer that is computed is written even if the work is stopped at the next one.
    with ThreadPoolExecutor(1, "write") as writing, _pool(1, "read") as reading:
        inputs = _prefetched(reading.submit(layer_pass.read, task) for task in tasks)
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


def _in_parallel(
    tasks: Sequence[LayerTask], layer_pass: LayerPass[Inputs, Result, Outcome]
) -> dict[int, Outcome]:
    """Process two groups of layers at a time, each on one thread."""

    def run(group: Sequence[LayerTask]) -> dict[int, Outcome]:
        inputs = [layer_pass.read(task) for task in group]
        results: list[Result] = []
        outcomes: dict[int, Outcome] = {}
        try:
            for task, own in zip(group, inputs, strict=True):
                results.append(layer_pass.compute(task, own))
        finally:
            # A layer that is computed is written even if the work is stopped at the next one.
            for task, result in zip(group, results, strict=False):
                outcomes[task.number] = layer_pass.write(task, result)
        return outcomes

    width = min(PARALLEL_LAYERS, torch.get_num_threads())
    # Torch keeps its number of threads per Python thread.
    with _pool(width, "layer", lambda: torch.set_num_threads(1)) as pool:
        done = list(pool.map(run, _groups(tasks)))
    return {number: outcome for several in done for number, outcome in several.items()}


def _groups(tasks: Sequence[LayerTask]) -> Iterator[tuple[LayerTask, ...]]:
    """Yield tiny layers in groups, and others one by one."""
    # Of few layers none wait for others.
    most = min(GROUP_LAYERS, len(tasks) // GROUP_LAYERS)
    group: list[LayerTask] = []
    for task in tasks:
        if group and (len(group) >= most or sum(each.cost for each in (*group, task)) > GROUP_WORK):
            yield tuple(group)
            group = []
        group.append(task)
    if group:
        yield tuple(group)


@contextmanager
def _pool(
    width: int, name: str, initializer: Callable[[], None] | None = None
) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(width, name, initializer)
    try:
        yield pool
    finally:
        # When the work is stopped, tasks that have not started are canceled.
        pool.shutdown(cancel_futures=True)


def _prefetched(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, but take each from the iterator one step earlier."""
    current = next(items, None)
    while current is not None:
        following = next(items, None)
        yield current
        current = following
