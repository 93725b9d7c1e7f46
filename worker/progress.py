"""Track the progress of a job by the cost of its layers, since costs differ a thousandfold."""

import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial

from pydantic import Field

from schemas.job import Progress
from worker.work_plan import LayerTask


class Step(Progress):
    """The progress when a step of the work begins, the cost of that step, and the progress as it is later."""

    cost: int = Field(exclude=True)
    current: Callable[[], Progress] = Field(exclude=True)


Observer = Callable[[Step], None]
# The decomposition's share of the work on a layer that shares a budget.
DECOMPOSITION_SHARE = 0.8
# While a layer is not done, however small it is.
MOST_UNDONE = 0.9999


class ProgressTracker:
    """Notifies an observer of each layer that begins and of the end; may be used from several threads.

    Layers that an earlier attempt finished are `kept`: they count from the start, like those that stay as
    they are. The reported progress decreases only where such a layer must be done again. Once the observer
    has raised an exception, every later notification raises it again, so that work that was stopped stays
    stopped.
    """

    def __init__(self, tasks: Sequence[LayerTask], observe: Observer, *, kept: Collection[int] = ()) -> None:
        self._observe = observe
        self._lock = threading.Lock()
        self._stop: BaseException | None = None
        # Costs are fixed at the start, so that later decisions do not change progress already reported.
        self._costs = {task.number: task.cost for task in tasks}
        self._cost_total = sum(self._costs.values())
        self._cost_most = max(self._costs.values(), default=0)
        self._cost_done = 0
        self._counted: dict[int, int] = {}
        self._done: set[int] = set()
        for task in tasks:
            if task.number in kept or task.layer.reason is not None:
                self.end(task)

    def begin(self, task: LayerTask) -> None:
        """Report the start of a layer."""
        self._notify(task.layer.name, task.cost)

    def end_decomposition(self, task: LayerTask) -> None:
        """Count the decomposition of a layer as done."""
        with self._lock:
            self._count(task.number, int(DECOMPOSITION_SHARE * self._costs[task.number]))

    def end(self, task: LayerTask) -> None:
        """Count a layer as finished."""
        with self._lock:
            self._count(task.number, self._costs[task.number])
            self._done.add(task.number)

    def redo(self, task: LayerTask) -> None:
        """Count a layer as not finished: what was kept of it is damaged or does not fit."""
        with self._lock:
            if task.number in self._done:
                self._done.remove(task.number)
                self._cost_done -= self._counted.pop(task.number)

    def between_layers(self) -> None:
        """Report the progress while no layer is in work; the observer may stop the work here too."""
        self._notify(None, self._cost_most)

    def _notify(self, layer: str | None, cost: int) -> None:
        with self._lock:
            if self._stop is not None:
                raise self._stop
            try:
                progress = self._progress(layer)
                self._observe(Step(**dict(progress), cost=cost, current=partial(self._current, layer)))
            except BaseException as error:
                self._stop = error
                raise

    def _count(self, number: int, cost: int) -> None:
        before = self._counted.get(number, 0)
        self._counted[number] = max(before, cost)
        self._cost_done += self._counted[number] - before

    def _current(self, layer: str | None) -> Progress:
        with self._lock:
            return self._progress(layer)

    def _progress(self, layer: str | None) -> Progress:
        # Not 1 for a layer whose cost rounds to nothing.
        all_done = len(self._done) == len(self._costs)
        fraction = 1.0 if all_done else min(self._cost_done / max(self._cost_total, 1), MOST_UNDONE)
        return Progress(
            layers_done=len(self._done), layers_total=len(self._costs), layer=layer, fraction=fraction
        )
