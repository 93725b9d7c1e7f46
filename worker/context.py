"""What all layers of a job share: readers of tensors, spool, cache and progress; and the inputs of each."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from schemas.format.tensor import TensorInfo
from worker.checkpoint.reader import CHUNK_BYTES, CheckpointReader
from worker.checkpoint.spool import LayerSpool
from worker.difference import subtract
from worker.layer_cache import CachedLayer, LayerCache
from worker.lowrank import Statistics
from worker.progress import ProgressTracker
from worker.work_plan import LayerTask


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
        return self._matrix((task.path, task.tensor), task)

    def base(self, task: LayerTask) -> torch.Tensor | None:
        """Read the weight of the base as [outputs, inputs]; None if there is no base."""
        return None if task.base is None else self._matrix(task.base, task)

    def _matrix(self, source: tuple[Path, TensorInfo], task: LayerTask) -> torch.Tensor:
        path, tensor = source
        matrix = self._open(path).read(tensor.name)
        return matrix.mT.contiguous() if task.layer.transposed else matrix

    def chunks(
        self, path: Path, tensor: TensorInfo, *, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[memoryview]:
        """Yield the bytes of any tensor in pieces."""
        return self._open(path).chunks(tensor, chunk_bytes=chunk_bytes)

    def gram(self, task: LayerTask) -> torch.Tensor | None:
        """Read XXᵀ [inputs, inputs] of a layer's inputs; None if the layer is not calibrated."""
        if task.gram is None:
            return None
        path, tensor = task.gram
        return self._open(path).read(tensor.name)


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """A layer's weight [outputs, inputs], the Gram matrix of its inputs, and its cached decompositions.

    With a base, `weight` is the difference to it, and `base` [outputs, inputs] is its own weight where the
    result is added to it.
    """

    weight: torch.Tensor
    gram: torch.Tensor | None = None
    cached: CachedLayer | None = None
    base: torch.Tensor | None = None

    def statistics(self, device: torch.device) -> Statistics | None:
        """Return the statistics on the device of the numerics; None if the layer is not calibrated."""
        return None if self.gram is None else Statistics(gram=self.gram.to(device))


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
        Seed of the sampling selectors and of the random Krylov space.
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
        weight, base = self.readers.weight(task), self.readers.base(task)
        if base is not None:
            weight = subtract(weight, base)
        return LayerInputs(
            weight, self.readers.gram(task), cached, base=base if task.layer.dense_layout else None
        )
