"""What all layers of a job share: device and threads, readers of tensors, spool, cache and progress."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Literal, Self

import torch

from schemas.format.errors import quoted
from schemas.planning.calibration import CalibrationError
from worker.checkpoint.reader import CheckpointReader
from worker.checkpoint.spool import LayerSpool
from worker.layer_cache import CachedLayer, LayerCache
from worker.lowrank import gram_fault
from worker.progress import ProgressTracker
from worker.work_plan import LayerTask

DeviceChoice = Literal["auto", "cpu", "cuda"]


def choose_device(choice: DeviceChoice) -> torch.device:
    """Return the requested device; `auto` is CUDA if there is a CUDA device, else the CPU."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise ValueError("ECKART_DEVICE=cuda, but torch finds no CUDA device; use auto or cpu")
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(choice)


def set_threads(threads: int | None) -> None:
    """Use this many threads, or as many as there are processors for this process."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


class TensorReaders:
    """Reads weights and Gram matrices; may be used from several threads."""

    def __init__(self) -> None:
        self._readers = ExitStack()
        self._open = cache(lambda path: self._readers.enter_context(CheckpointReader(path)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers.close()

    def weight(self, task: LayerTask) -> torch.Tensor:
        """Read a weight as [outputs, inputs], also where it is stored transposed."""
        weight = self._open(task.path).read(task.tensor.name)
        return weight.mT.contiguous() if task.layer.transposed else weight

    def gram(self, task: LayerTask) -> torch.Tensor | None:
        """Read XXᵀ [inputs, inputs] of a layer's inputs; None if the layer is not calibrated."""
        if task.gram is None:
            return None
        path, tensor = task.gram
        return self._open(path).read(tensor.name)


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


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """A layer's weight [outputs, inputs], the Gram matrix of its inputs, and its cached decompositions."""

    weight: torch.Tensor
    gram: torch.Tensor | None = None
    cached: CachedLayer | None = None


@dataclass(frozen=True, slots=True)
class JobContext:
    """The services that all layers of a job share.

    Attributes
    ----------
    readers
        Reads weights and Gram matrices.
    spool
        Stores finished layers; a layer is done once it is there at the planned rank.
    cache
        Loads and stores decompositions; None if there is no cache.
    progress
        Notified of the start and the end of each layer; an exception from its observer stops the work.
    seed
        Seed of the sampling selectors.
    device
        Where the numerics run.
    """

    readers: TensorReaders
    spool: LayerSpool
    cache: LayerCache | None
    progress: ProgressTracker
    seed: int
    device: torch.device

    def read(self, task: LayerTask) -> LayerInputs:
        """Read all inputs of a layer."""
        cached = self.cache.layer(task) if self.cache else None
        if cached:
            cached.get(0)  # Read together with the weight, since most layers need it first.
        return LayerInputs(self.readers.weight(task), self.readers.gram(task), cached)
