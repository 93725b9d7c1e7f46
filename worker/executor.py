"""Going through layers: large ones one after another on all threads, small ones two at a time on one each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import Generic, TypeVar

import torch

from worker.work_plan import LayerTask

# Flops and elements up to which a layer is small: one thread is as fast there as several on an idle machine,
# and on a busy one several wait for each other at every step (3 s instead of 15 ms were seen for 384 x 384).
SMALL_WORK = 2**30
SMALL_ELEMENTS = 2**22
# No more, so that a killed attempt has at most two layers to do again.
SIDE_BY_SIDE = 2
T = TypeVar("T")
LayerInputs = TypeVar("LayerInputs")
Made = TypeVar("Made")
Write = Callable[[], None]


class LayerExecutor(Generic[LayerInputs, Made]):
    """What is done to every layer: `read` it, `do` the work, and what that leaves to be written."""

    def __init__(
        self,
        read: Callable[[LayerTask], LayerInputs],
        do: Callable[[LayerTask, LayerInputs], tuple[Made, Write]],
        *,
        begin: Callable[[LayerTask], None],
        end: Callable[[LayerTask], None],
        device: torch.device,
    ) -> None:
        self._read = read
        self._do = do
        self._begin = begin
        self._end = end
        self._device = device

    def run(self, tasks: Iterable[LayerTask]) -> dict[int, Made]:
        """Return what was made of each layer, by number, once all of it is written."""
        made: dict[int, Made] = {}
        for small, alike in groupby(tasks, key=self._is_small):
            go = self._side_by_side if small else self._one_by_one
            made |= go(tuple(alike))
        return made

    def _is_small(self, task: LayerTask) -> bool:
        few = task.elements <= SMALL_ELEMENTS
        return self._device.type == "cpu" and few and task.cost <= SMALL_WORK

    def _one_by_one(self, tasks: Sequence[LayerTask]) -> dict[int, Made]:
        """Work on one at a time; meanwhile the next is read and the last written."""
        all_made = {}
        with _pool(1, "write") as writing, _pool(1, "read") as reading:
            given = _ahead(reading.submit(self._read, task) for task in tasks)
            written: Future[None] | None = None
            for task, at_hand in zip(tasks, given, strict=True):
                self._begin(task)
                all_made[task.number], write = self._do(task, at_hand.result())
                if written is not None:
                    written.result()
                written = writing.submit(write)
                self._end(task)
            if written is not None:
                written.result()
        return all_made

    def _side_by_side(self, tasks: Sequence[LayerTask]) -> dict[int, Made]:
        """Read, work and write two at a time."""
        width = min(SIDE_BY_SIDE, torch.get_num_threads())
        # Torch keeps the number of threads for each thread of ours.
        with _pool(width, "layer", lambda: torch.set_num_threads(1)) as pool:
            return dict(pool.map(self._alone, tasks))

    def _alone(self, task: LayerTask) -> tuple[int, Made]:
        self._begin(task)
        made, write = self._do(task, self._read(task))
        write()
        self._end(task)
        return task.number, made


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
