"""Run a pass over layers: large ones in sequence on all threads, small ones in parallel on one each."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby, islice
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
# How many layers are read ahead of the one in work, and how many behind it are still being written. A GPU
# computes most layers in less time than one thread takes to copy their bytes.
AHEAD, AHEAD_OF_GPU = 1, 3
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
            if are_small:
                outcomes |= _in_parallel(tuple(group), layer_pass)
            else:
                ahead = AHEAD if self._device.type == "cpu" else AHEAD_OF_GPU
                outcomes |= _in_sequence(tuple(group), layer_pass, ahead)
        return outcomes

    def _is_small(self, task: LayerTask) -> bool:
        if self._device.type != "cpu":
            return False
        return task.elements <= SMALL_ELEMENTS and task.cost <= SMALL_WORK


def _in_sequence(
    tasks: Sequence[LayerTask], layer_pass: LayerPass[Inputs, Result, Outcome], ahead: int
) -> dict[int, Outcome]:
    """Compute one layer at a time; meanwhile read those that follow and write those before."""
    outcomes: dict[int, Outcome] = {}
    # Not `canceling_pool`: a layer that is computed is written even if the work is stopped at the next one.
    with ThreadPoolExecutor(ahead, "write") as writing, canceling_pool(ahead, "read") as reading:
        inputs = _prefetched((reading.submit(layer_pass.read, task) for task in tasks), ahead)
        being_written: deque[tuple[int, Future[Outcome]]] = deque()
        for task, future in zip(tasks, inputs, strict=True):
            result = layer_pass.compute(task, future.result())
            if len(being_written) == ahead:
                number, written = being_written.popleft()
                outcomes[number] = written.result()
            being_written.append((task.number, writing.submit(layer_pass.write, task, result)))
            del result  # Only the writer still needs it.
        outcomes |= {number: written.result() for number, written in being_written}
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
    with canceling_pool(width, "layer", lambda: torch.set_num_threads(1)) as pool:
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
def canceling_pool(
    width: int, name: str, initializer: Callable[[], None] | None = None
) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of threads; when the work is stopped, tasks that have not started are canceled."""
    pool = ThreadPoolExecutor(width, name, initializer)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _prefetched(items: Iterator[T], ahead: int) -> Iterator[T]:
    """Yield the items, but take each from the iterator so many steps earlier."""
    taken = deque(islice(items, ahead))
    for item in items:
        taken.append(item)
        yield taken.popleft()
    yield from taken
