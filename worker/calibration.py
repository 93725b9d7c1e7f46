"""Check the values of a calibration before a job factors its first layer."""

from collections.abc import Callable, Sequence

import torch

from schemas.format.errors import quoted
from schemas.planning.references import CalibrationError
from worker.context import TensorReaders
from worker.lowrank import gram_fault
from worker.work_plan import LayerTask


def check_grams(
    tasks: Sequence[LayerTask],
    readers: TensorReaders,
    *,
    device: torch.device,
    check_canceled: Callable[[], None],
) -> None:
    """Check the values of all Gram matrices, so that a bad one fails the job before any layer is factored.

    Parameters
    ----------
    tasks
        The layers; those without a Gram matrix are skipped.
    readers
        Reads the matrices.
    device
        Where the numerics run.
    check_canceled
        Called before each matrix; an exception from it stops the work.

    Raises
    ------
    CalibrationError
        If a matrix cannot be the Gram matrix of any inputs; it names the layer and what to do.
    """
    for task in tasks:
        if task.gram is None or task.layer.columns == 0:
            continue
        check_canceled()
        gram = readers.gram(task)
        assert gram is not None
        fault = gram_fault(gram.to(device))
        if fault is not None:
            raise CalibrationError("gram-values", f"The Gram matrix of {quoted(task.layer.name)} {fault}.")
