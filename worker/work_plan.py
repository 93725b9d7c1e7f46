"""Where everything goes: input files and spec in, a frozen order of work and of the output's tensors out."""

from dataclasses import dataclass
from pathlib import Path

from schemas.format.files import InputFiles
from schemas.format.header import Header
from schemas.format.index import ShardIndex
from schemas.format.metadata import factored_names
from schemas.format.tensor import TensorInfo
from schemas.planning.budget import check_budget
from schemas.planning.calibration import GRAM
from schemas.planning.layer import LayerPlan
from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec


@dataclass(frozen=True, slots=True)
class InputFile:
    """One safetensors file of the input."""

    path: Path
    header: Header


@dataclass(frozen=True, slots=True)
class InputCheckpoint:
    """A whole input: its files in name order, and its index where it is sharded."""

    sources: tuple[InputFile, ...]
    index_path: Path | None
    index: ShardIndex | None

    @property
    def files(self) -> InputFiles:
        """What the size of an output hangs on."""
        return InputFiles({source.path.name: source.header for source in self.sources}, self.index)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Every tensor, by file and then by offset."""
        return tuple(tensor for source in self.sources for tensor in source.header.tensors)


@dataclass(frozen=True, slots=True)
class LayerTask:
    """One selected weight, where it lies, and what is to be done with it; `gram` is for calibrated ones."""

    number: int
    source: InputFile
    tensor: TensorInfo
    layer: LayerPlan
    gram: tuple[InputFile, TensorInfo] | None = None

    @property
    def elements(self) -> int:
        """Elements of what is to be read."""
        return self.layer.parameters_before + (self.layer.columns**2 if self.gram else 0)

    @property
    def cost(self) -> int:
        """Work in proportion to the flops of a decomposition; 1 at least, so that progress always moves."""
        if self.layer.reason is not None:
            return 1
        rows, columns = self.layer.rows, self.layer.columns
        # Where there is a Gram matrix it is multiplied with the weight.
        return max(1, rows * columns * (min(rows, columns) + (columns if self.gram else 0)))


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """All layers in the order of work, and what is likely not meant."""

    checkpoint: InputCheckpoint
    tasks: tuple[LayerTask, ...]
    warnings: tuple[str, ...]

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        """What is to be done to each layer, in the order of their numbers."""
        return tuple(task.layer for task in self.tasks)


def plan_work(
    checkpoint: InputCheckpoint, spec: CompressionSpec, calibration: InputCheckpoint | None = None
) -> WorkPlan:
    """Decide for the whole checkpoint at once, since names must not collide across shards.

    Raises
    ------
    CalibrationError
        If the calibration does not fit the checkpoint.
    SpecError
        If the checkpoint cannot meet the spec.
    """
    factored = factored_names(source.header.metadata for source in checkpoint.sources)
    grams = None if calibration is None else calibration.tensors
    plan = make_plan(checkpoint.tensors, spec, factored=factored, grams=grams)
    check_budget(plan, spec, checkpoint.files)
    found = {} if calibration is None else _grams(calibration)
    layers = {layer.tensor: layer for layer in plan.layers}
    selected = [
        (source, tensor, layers[tensor.name], found.get(layers[tensor.name].name))
        for source in checkpoint.sources
        for tensor in source.header.tensors
        if tensor.name in layers
    ]
    tasks = tuple(LayerTask(number, *where) for number, where in enumerate(selected))
    return WorkPlan(checkpoint, tasks, plan.warnings)


def _grams(calibration: InputCheckpoint) -> dict[str, tuple[InputFile, TensorInfo]]:
    return {
        tensor.name.removesuffix(GRAM): (source, tensor)
        for source in calibration.sources
        for tensor in source.header.tensors
        if tensor.name.endswith(GRAM)
    }
