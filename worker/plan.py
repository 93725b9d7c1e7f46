"""Where everything goes: input files and spec in, a frozen order of work and of the output's tensors out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas.checkpoint import Header, ShardIndex, TensorInfo
from schemas.compression import CompressionSpec
from schemas.manifest import factored_names
from schemas.plan import BIAS, LayerPlan
from schemas.planning import make_plan


@dataclass(frozen=True, slots=True)
class Source:
    """One safetensors file of the input."""

    path: Path
    header: Header


@dataclass(frozen=True, slots=True)
class InputCheckpoint:
    """A whole input: its files in name order, and its index where it is sharded."""

    sources: tuple[Source, ...]
    index_path: Path | None
    index: ShardIndex | None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Every tensor, by file and then by offset."""
        return tuple(tensor for source in self.sources for tensor in source.header.tensors)


@dataclass(frozen=True, slots=True)
class LayerTask:
    """One selected weight, where it lies, and what is to be done with it."""

    number: int
    source: Source
    tensor: TensorInfo
    layer: LayerPlan

    @property
    def cost(self) -> int:
        """Work in proportion to the flops of a decomposition; 1 at least, so that progress always moves."""
        rows, columns = self.layer.rows, self.layer.columns
        return max(1, rows * columns * min(rows, columns)) if self.layer.reason is None else 1


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """All layers in the order of work, and what is likely not meant."""

    checkpoint: InputCheckpoint
    tasks: tuple[LayerTask, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """A tensor that goes over byte for byte, maybe under a new name."""

    name: str
    tensor: TensorInfo


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that was computed: factor `position` of layer `number`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    number: int
    position: int


def plan_work(checkpoint: InputCheckpoint, spec: CompressionSpec) -> WorkPlan:
    """Decide for the whole checkpoint at once, since names must not collide across shards."""
    factored = factored_names(source.header.metadata for source in checkpoint.sources)
    plan = make_plan(checkpoint.tensors, spec, factored=factored)
    layers = {layer.tensor: layer for layer in plan.layers}
    selected = [
        (source, tensor, layers[tensor.name])
        for source in checkpoint.sources
        for tensor in source.header.tensors
        if tensor.name in layers
    ]
    tasks = tuple(LayerTask(number, *where) for number, where in enumerate(selected))
    return WorkPlan(checkpoint, tasks, plan.warnings)


def plan_output(
    source: Source, tasks: tuple[LayerTask, ...], ranks: Mapping[int, int]
) -> tuple[Copied | Stored, ...]:
    """Lay out one output file in its input's order.

    Parameters
    ----------
    source
        The input file.
    tasks
        The layers of the whole checkpoint: a bias may lie in another file than its weight.
    ranks
        The rank of each layer that was factored, by its number.
    """
    weights = {task.tensor.name: task for task in tasks if task.number in ranks}
    biases = {
        task.layer.name + BIAS: task.layer.bias_name()
        for task in weights.values()
        if not task.layer.dense_layout
    }
    entries: list[Copied | Stored] = []
    for tensor in source.header.tensors:
        if task := weights.get(tensor.name):
            entries += _stored(task, ranks[task.number])
        else:
            entries.append(Copied(biases.get(tensor.name, tensor.name), tensor))
    return tuple(entries)


def _stored(task: LayerTask, rank: int) -> list[Stored]:
    layer = task.layer
    if layer.dense_layout:
        return [Stored(layer.tensor, layer.stored_dtype, (layer.rows, layer.columns), task.number, 0)]
    pairs = zip(layer.factor_names(), layer.factor_shapes(rank), strict=True)
    return [
        Stored(name, layer.stored_dtype, shape, task.number, position)
        for position, (name, shape) in enumerate(pairs)
    ]
