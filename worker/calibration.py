"""Check the values of a calibration before a job factors its first layer."""

from collections.abc import Callable, Mapping, Sequence

import torch

from schemas.format.errors import quoted
from schemas.planning.references import CalibrationError
from worker.context import TensorReaders
from worker.lowrank import count_fault, grad_gram_fault, gram_fault
from worker.work_plan import LayerTask, TensorSource


def check_statistics(
    tasks: Sequence[LayerTask],
    readers: TensorReaders,
    *,
    device: torch.device,
    check_canceled: Callable[[], None],
) -> None:
    """Check the values of all statistics, so that bad ones fail the job before any layer is factored.

    Parameters
    ----------
    tasks
        The layers; those without statistics are skipped.
    readers
        Reads the tensors.
    device
        Where the numerics run.
    check_canceled
        Called before each tensor; an exception from it stops the work.

    Raises
    ------
    CalibrationError
        If a tensor cannot be what it is named after; it names the layer and what to do.
    """
    checked: set[TensorSource] = set()
    for task in tasks:
        if task.layer.parameters_before == 0:
            continue
        for kind, source in task.statistics.items():
            # Layers with the same inputs share tensors.
            if source in checked:
                continue
            checked.add(source)
            check_canceled()
            fault = FAULTS[kind](readers.tensor(source).to(device))
            if fault is not None:
                subject = f"{SUBJECTS[kind]} of {quoted(task.layer.name)}"
                raise CalibrationError("gram-values", f"{subject} {fault}.")


def _mean_fault(mean: torch.Tensor) -> str | None:
    is_finite = bool(torch.isfinite(mean).all())
    return None if is_finite else "holds NaN or infinity; leave out the batch that brings them"


def _count_fault(count: torch.Tensor) -> str | None:
    return count_fault(float(count))


FAULTS: Mapping[str, Callable[[torch.Tensor], str | None]] = {
    "gram": gram_fault,
    "grad_gram": grad_gram_fault,
    "mean": _mean_fault,
    "count": _count_fault,
}
SUBJECTS = {
    "gram": "The Gram matrix",
    "grad_gram": "The Gram matrix of gradients",
    "mean": "The mean",
    "count": "The count",
}
