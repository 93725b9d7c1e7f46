"""The files that a job reads its layers from, each opened once."""

from contextlib import ExitStack
from functools import cache
from types import TracebackType
from typing import Self

import torch

from worker.checkpoint.reader import CheckpointReader
from worker.plan import LayerTask


class Sources:
    """Reads weights and Gram matrices, from any thread, until it is closed."""

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
        """Read a weight as the map it is, [outputs, inputs], however it is stored."""
        weight = self._open(task.source.path).read(task.tensor.name)
        return weight.mT.contiguous() if task.layer.transposed else weight

    def gram(self, task: LayerTask) -> torch.Tensor | None:
        """Read XXᵀ [inputs, inputs] of a layer's inputs; None where it is not calibrated."""
        if task.gram is None:
            return None
        source, tensor = task.gram
        return self._open(source.path).read(tensor.name)
