"""How far the work has come, by what each layer costs, since layers differ a thousandfold."""

import threading
from collections.abc import Callable, Collection, Sequence

from schemas.job import Progress
from worker.plan import LayerTask

Observer = Callable[[Progress], None]


class Meter:
    """Tells an observer of each layer that begins and of the end of all, from any thread.

    Once the observer has raised, every later word raises the same: work that is stopped stays stopped.
    """

    def __init__(self, tasks: Sequence[LayerTask], observe: Observer, *, finished: Collection[int]) -> None:
        self._observe = observe
        self._lock = threading.Lock()
        self._stop: BaseException | None = None
        self._layers_total = len(tasks)
        self._cost_total = sum(task.cost for task in tasks)
        self._layers_done = len(finished)
        self._cost_done = sum(task.cost for task in tasks if task.number in finished)

    def begin(self, task: LayerTask) -> None:
        """Say which layer is at hand."""
        self._tell(task.layer.name)

    def end(self, task: LayerTask) -> None:
        """Count a layer as finished."""
        with self._lock:
            self._layers_done += 1
            self._cost_done += task.cost

    def end_all(self) -> None:
        """Say that no layer is left."""
        self._tell(None)

    def _tell(self, layer: str | None) -> None:
        with self._lock:
            if self._stop is not None:
                raise self._stop
            try:
                self._observe(self._progress(layer))
            except BaseException as error:
                self._stop = error
                raise

    def _progress(self, layer: str | None) -> Progress:
        fraction = self._cost_done / self._cost_total if self._cost_total else 1.0
        return Progress(
            layers_done=self._layers_done, layers_total=self._layers_total, layer=layer, fraction=fraction
        )
