"""The values of all Gram matrices, looked at before the first layer is factored."""

from collections.abc import Callable, Sequence

import torch

from schemas.calibration import CalibrationError
from schemas.fault import quoted
from worker.lowrank import gram_fault
from worker.plan import LayerTask
from worker.sources import Sources


def check_grams(
    tasks: Sequence[LayerTask], sources: Sources, *, device: torch.device, go_on: Callable[[], None]
) -> None:
    """Look at one matrix after another.

    Parameters
    ----------
    tasks
        The layers; those without a Gram matrix are passed over.
    sources
        Where they are read.
    device
        Where the numerics run.
    go_on
        Asked before each matrix; what it raises stops the work.

    Raises
    ------
    CalibrationError
        If one cannot be the Gram matrix of any inputs; it names the layer and the remedy.
    """
    for task in tasks:
        if task.gram is None or task.layer.columns == 0:
            continue
        go_on()
        gram = sources.gram(task)
        assert gram is not None
        fault = gram_fault(gram.to(device))
        if fault is not None:
            raise CalibrationError("gram-values", f"The Gram matrix of {quoted(task.layer.name)} {fault}.")
