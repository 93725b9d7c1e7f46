"""Check the values of a calibration before a job factors its first layer."""

from collections.abc import Callable, Sequence

import torch

from schemas.format.errors import listed, quoted
from schemas.planning.references import CalibrationError
from worker.context import TensorReaders
from worker.lowrank import count_fault, grad_gram_fault, gram_fault, mean_fault
from worker.work_plan import LayerTask, TensorSource


def check_statistics(
    tasks: Sequence[LayerTask],
    readers: TensorReaders,
    *,
    device: torch.device,
    check_canceled: Callable[[], None],
) -> tuple[str, ...]:
    """Check the values of all statistics, so that bad ones fail the job before any layer is factored.

    Returns a warning where layers have fewer tokens than inputs.

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
    scarce: dict[str, tuple[int, int]] = {}
    for task in tasks:
        if task.layer.parameters_before == 0:
            continue
        for kind, subject in SUBJECTS.items():
            source = task.statistics.get(kind)
            # Layers with the same inputs share tensors.
            if source is None or source in checked:
                continue
            checked.add(source)
            check_canceled()
            fault = _fault(kind, task, readers, device)
            if fault is not None:
                message = f"{subject} of {quoted(task.layer.name)} {fault}."
                raise CalibrationError("gram-values", message)
            if kind == "count" and (few := _few_tokens(task, readers)) is not None:
                scarce[task.layer.name] = few
    return _scarcity(scarce)


def _few_tokens(task: LayerTask, readers: TensorReaders) -> tuple[int, int] | None:
    """Return the numbers of tokens and of inputs where the inputs are more."""
    if "gram" not in task.statistics:
        return None
    tokens, inputs = int(readers.tensor(task.statistics["count"])), task.statistics["gram"][1].shape[-1]
    return (tokens, inputs) if tokens < inputs else None


def _scarcity(scarce: dict[str, tuple[int, int]]) -> tuple[str, ...]:
    if not scarce:
        return ()
    tokens, inputs = max(scarce.values(), key=lambda pair: pair[1] - pair[0])
    warning = (
        f"calibration: fewer tokens than inputs ({tokens} for {inputs}) at {listed(list(scarce))}; "
        "directions that no token shows cost nothing then; calibrate with several times as many tokens"
    )
    return (warning,)


def _fault(kind: str, task: LayerTask, readers: TensorReaders, device: torch.device) -> str | None:
    found = readers.tensor(task.statistics[kind]).to(device)
    if kind == "gram":
        return gram_fault(found)
    if kind == "grad_gram":
        return grad_gram_fault(found)
    if kind == "count":
        return count_fault(float(found))
    gram, count = (task.statistics.get(name) for name in ("gram", "count"))
    # A mean is used together with both, or not at all.
    if gram is None or count is None:
        return None
    return mean_fault(found, readers.tensor(gram), float(readers.tensor(count)))


# By what errors call them, in the order of the checks: a mean is compared with sound others.
SUBJECTS = {
    "gram": "The Gram matrix",
    "grad_gram": "The Gram matrix of gradients",
    "count": "The count",
    "mean": "The mean",
}
