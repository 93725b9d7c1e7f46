"""How far the work has come, by what each layer costs, since layers differ a thousandfold."""

from collections.abc import Callable, Collection, Sequence

from schemas.job import Progress
from worker.plan import LayerTask

Observer = Callable[[Progress], None]


class Meter:
    """Tells an observer of each layer that begins and of the end of all."""

    def __init__(self, tasks: Sequence[LayerTask], observe: Observer, *, finished: Collection[int]) -> None:
        self._observe = observe
        self._layers_total = len(tasks)
        self._cost_total = sum(task.cost for task in tasks)
        self._layers_done = len(finished)
        self._cost_done = sum(task.cost for task in tasks if task.number in finished)

    def begin(self, task: LayerTask) -> None:
        """Say which layer is at hand."""
        self._tell(task.layer.name)

    def end(self, task: LayerTask) -> None:
        """Count a layer as finished."""
        self._layers_done += 1
        self._cost_done += task.cost

    def end_all(self) -> None:
        """Say that no layer is left."""
        self._tell(None)

    def _tell(self, layer: str | None) -> None:
        fraction = self._cost_done / self._cost_total if self._cost_total else 1.0
        self._observe(
            Progress(
                layers_done=self._layers_done,
                layers_total=self._layers_total,
                layer=layer,
                fraction=fraction,
            )
        )
