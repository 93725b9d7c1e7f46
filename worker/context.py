"""What all layers of a job share: readers of tensors, spool, cache and progress; and the inputs of each."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import torch

from schemas.format.encodings.base import VALUES
from schemas.format.encodings.lora import ALPHA, UP
from schemas.format.tensor import TensorInfo
from worker.checkpoint.reader import CHUNK_BYTES, CheckpointReader, FileState
from worker.checkpoint.spool import LayerSpool
from worker.device import upload
from worker.difference import subtract
from worker.encodings import decode
from worker.layer_cache import CachedLayer, LayerCache
from worker.lowrank import Statistics, ThinProduct, thin_product
from worker.progress import ProgressTracker
from worker.work_plan import LayerTask, TensorSource

NO_STATES: Mapping[Path, FileState] = MappingProxyType({})


class TensorReaders:
    """Reads weights and statistics; may be used from several threads.

    `states` are those of files whose bytes were checked (`worker.input_check`); they are held to them.
    """

    def __init__(self, states: Mapping[Path, FileState] = NO_STATES) -> None:
        self._states = states
        self._readers = ExitStack()
        self._open = cache(self._opened)

    def _opened(self, path: Path) -> CheckpointReader:
        return self._readers.enter_context(CheckpointReader(path, state=self._states.get(path)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers.close()

    def weight(self, task: LayerTask) -> torch.Tensor:
        """Read a weight as a matrix [outputs, inputs], also where it is stored transposed, or is a kernel."""
        if task.layer.encoded is None:
            return self._matrix((task.path, task.tensor), task)
        parts = {role: self.tensor(source) for role, source in task.parts.items()}
        return self._oriented(decode(task.layer.encoded, parts), task)

    def lora(self, task: LayerTask, device: torch.device) -> ThinProduct:
        """Read the two matrices of an adapter whose product a layer is; kernels are read as matrices."""
        down, up = (upload(self.tensor(task.parts[role]).flatten(1), device) for role in (VALUES, UP))
        return thin_product(down, up)

    def scale(self, task: LayerTask) -> torch.Tensor | None:
        """Read the scale of such a layer; None if the file has none."""
        return self.tensor(task.parts[ALPHA]) if ALPHA in task.parts else None

    def base(self, task: LayerTask) -> torch.Tensor | None:
        """Read the weight of the base as [outputs, inputs]; None if there is no base."""
        return None if task.base is None else self._matrix(task.base, task)

    def _matrix(self, source: TensorSource, task: LayerTask) -> torch.Tensor:
        return self._oriented(self.tensor(source), task)

    def _oriented(self, weight: torch.Tensor, task: LayerTask) -> torch.Tensor:
        if task.layer.transposed:
            weight = weight.transpose(0, 1).contiguous()
        return weight.reshape(task.layer.rows, task.layer.columns) if task.layer.kernel else weight

    def chunks(
        self, path: Path, tensor: TensorInfo, *, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[memoryview]:
        """Yield the bytes of any tensor in pieces."""
        return self._open(path).chunks(tensor, chunk_bytes=chunk_bytes)

    def bias(self, task: LayerTask) -> torch.Tensor | None:
        """Read the bias [outputs] that a new one replaces; None if there is none."""
        return None if task.bias is None else self.tensor(task.bias)

    def statistics(self, task: LayerTask) -> Statistics | None:
        """Read the statistics of a layer, the mean only where the bias is corrected; None without any."""
        found = {name: self.tensor(source) for name, source in task.statistics.items() if name != "count"}
        if "gram" not in found and "grad_gram" not in found:
            return None
        count = task.statistics.get("count")
        return Statistics(
            gram=found.get("gram"),
            grad_gram=found.get("grad_gram"),
            mean=found.get("mean") if task.layer.corrects_bias else None,
            count=None if count is None else float(self.tensor(count)),
        )

    def tensor(self, source: TensorSource) -> torch.Tensor:
        """Read a tensor as it is stored."""
        path, tensor = source
        return self._open(path).read_part(tensor)


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """A layer's weight [outputs, inputs], its statistics, and its cached decompositions.

    With a base, `weight` is the difference to it, and `base` [outputs, inputs] is its own weight where the
    result is added to it. `bias` [outputs] is given where it is corrected. Of a LoRA pair, `weight` is the
    core of its `product`; `scale` goes with it.
    """

    weight: torch.Tensor
    statistics: Statistics | None = None
    cached: CachedLayer | None = None
    base: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    product: ThinProduct | None = None
    scale: torch.Tensor | None = None

    def statistics_on(self, device: torch.device) -> Statistics | None:
        """Return the statistics on the device of the numerics."""
        return None if self.statistics is None else self.statistics.to(device)


@dataclass(frozen=True, slots=True)
class JobContext:
    """The services that all layers of a job share.

    Attributes
    ----------
    readers
        Reads weights and statistics.
    spool
        Stores finished layers; a layer is done once it is there with the planned form and rank.
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
        """Read all inputs of a layer; the weight goes to the device while other layers are computed."""
        cached = self.cache.layer(task) if self.cache else None
        if cached:
            cached.get(0)  # Read together with the weight, since most layers need it first.
        if task.layer.is_lora:
            product = self.readers.lora(task, self.device)
            return LayerInputs(product.core, cached=cached, product=product, scale=self.readers.scale(task))
        weight, base = self.readers.weight(task), self.readers.base(task)
        if base is not None:
            weight = subtract(weight, base)
        return LayerInputs(
            upload(weight, self.device),
            self.readers.statistics(task),
            cached,
            base=base if task.layer.dense_layout else None,
            bias=self.readers.bias(task),
        )
