"""The work of a job as a frozen value: each selected layer with its plan and the files to read it from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from schemas.format.encodings import EncodedWeight
from schemas.format.files import CheckpointFiles
from schemas.format.stacks import ExpertMatrix, expert_matrices, stem_of
from schemas.format.tensor import BIAS, TensorInfo
from schemas.planning.budget import check_budget
from schemas.planning.calibration import Calibration
from schemas.planning.layer import LayerPlan, Tensor
from schemas.planning.layers import LeftOut, Plan
from schemas.planning.output_header import check_output_headers
from schemas.planning.planner import make_plan
from schemas.planning.references import NO_REFERENCES, References, planned_tensors, tensors_of
from schemas.spec import CompressionSpec

# Singular values in a report: of each layer, and of all together where that leaves the least of each.
LEAST_POINTS, MOST_POINTS, ALL_POINTS = 8, 256, 2**17
NO_SOURCES: Mapping[str, "TensorSource"] = MappingProxyType({})


# The path of a file, and a tensor in it.
TensorSource = tuple[Path, TensorInfo]


@dataclass(frozen=True, slots=True)
class LayerTask:
    """One selected weight: its plan, its file and tensor, and those of what else is needed, if any.

    `statistics` are by name, as in `schemas.planning.calibration.STATISTICS`. `bias` is given if a new
    one takes its place. `parts` are the tensors of a quantized weight, by what they are.
    """

    number: int
    path: Path
    tensor: TensorInfo
    layer: LayerPlan
    statistics: Mapping[str, TensorSource] = field(default_factory=lambda: NO_SOURCES)
    base: TensorSource | None = None
    bias: TensorSource | None = None
    spectrum_points: int = MOST_POINTS
    parts: Mapping[str, TensorSource] = field(default_factory=lambda: NO_SOURCES)

    @property
    def elements(self) -> int:
        """Elements of the weight, its base and the statistics."""
        weights = 2 if self.base else 1
        statistics = sum(tensor.parameters for _, tensor in self.statistics.values())
        return weights * self.layer.parameters_before + statistics

    @property
    def cost(self) -> int:
        """Relative cost, by the flops of a decomposition; at least 1, so that progress always grows."""
        if self.layer.reason is not None:
            return 1
        rows, columns = self.layer.rows, self.layer.columns
        if self.layer.is_lora:
            return (rows + columns) * self.layer.lora_rank**2
        # A Gram matrix is multiplied by the weight.
        grams = (columns if "gram" in self.statistics else 0) + (
            rows if "grad_gram" in self.statistics else 0
        )
        return max(1, rows * columns * (min(rows, columns) + grams))


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """All layers in the order of work, and what else the plan says: see `Plan`.

    `base` is given if the difference to it is factored. `planned` are the tensors as planning sees them.
    """

    checkpoint: CheckpointFiles
    tasks: tuple[LayerTask, ...]
    warnings: tuple[str, ...]
    unselected: Mapping[str, LeftOut]
    adapter: bool = False
    base: CheckpointFiles | None = None
    planned: Sequence[Tensor] = ()

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        """The plans of all layers, in the order of their numbers."""
        return tuple(task.layer for task in self.tasks)

    @property
    def plan(self) -> Plan:
        """The plan, its layers in the order of their numbers."""
        return Plan(self.layers, self.warnings, self.unselected, self.adapter)


def plan_work(
    checkpoint: CheckpointFiles,
    spec: CompressionSpec,
    references: References[CheckpointFiles] = NO_REFERENCES,
) -> WorkPlan:
    """Plan all layers of a checkpoint at once, since names must not collide across shards.

    Raises
    ------
    MisfitError
        If the calibration or the base does not fit the checkpoint.
    SpecError
        If the checkpoint cannot meet the spec.
    """
    calibration = None if references.calibration is None else Calibration.of(references.calibration)
    base = tensors_of(references.base)
    planned = planned_tensors(checkpoint, spec, base)
    plan = make_plan(
        planned.tensors,
        spec,
        factored=checkpoint.factored,
        aliases=checkpoint.aliases,
        content_hashes=checkpoint.content_hashes,
        calibration=calibration,
        base=base,
        unknown=planned.unknown,
    )
    check_budget(plan, spec, checkpoint)
    check_output_headers(plan, checkpoint)
    statistics = {} if calibration is None else _statistics_sources(calibration, references)
    bases = {} if references.base is None else tensor_sources(references.base)
    sources = _with_experts(tensor_sources(checkpoint), planned.tensors)
    layers = {layer.replaced[0]: layer for layer in plan.layers}
    selected = [(sources[name], layers[name]) for name in sources if name in layers]
    points = spectrum_points(len(selected))
    tasks = tuple(
        LayerTask(
            number,
            *source,
            layer,
            statistics=statistics.get(layer.name, NO_SOURCES),
            base=bases.get(layer.tensor),
            bias=sources[layer.name + BIAS] if layer.replaces_bias else None,
            spectrum_points=points,
            parts=_parts(layer, sources),
        )
        for number, (source, layer) in enumerate(selected)
    )
    warnings = (*checkpoint.warnings, *plan.warnings)
    return WorkPlan(
        checkpoint, tasks, warnings, plan.unselected, plan.adapter, references.base, planned.tensors
    )


def _with_experts(sources: dict[str, TensorSource], planned: Sequence[Tensor]) -> dict[str, TensorSource]:
    """Add the matrices of stacks, each in the file of its stack and in the order of the tensors."""
    stems = {
        stack: stem_of(tensor.module)
        for tensor in planned
        if isinstance(tensor, ExpertMatrix | EncodedWeight) and tensor.expert is not None
        for stack in tensor.expert.stacks(tensor.module)
    }
    if not stems:
        return sources
    found: dict[str, TensorSource] = {}
    for name, (path, tensor) in sources.items():
        found[name] = path, tensor
        if name in stems:
            found |= {matrix.name: (path, matrix) for matrix in expert_matrices(tensor, stems[name])}
    return found


def _parts(layer: LayerPlan, sources: Mapping[str, TensorSource]) -> Mapping[str, TensorSource]:
    if layer.encoded is None:
        return NO_SOURCES
    return {role: sources[name] for role, name in layer.encoded.names(layer.name).items()}


def spectrum_points(layers: int) -> int:
    """Return how many singular values the report may have of each of so many layers."""
    return max(LEAST_POINTS, min(MOST_POINTS, ALL_POINTS // max(1, layers)))


def refuse_ids(spec: CompressionSpec) -> None:
    """Raise a ValueError if the spec names a checkpoint of a service, which a local run has not."""
    for name in spec.references:
        raise ValueError(f"the spec names a {name} by the id of a service; give its file instead")


def tensor_sources(checkpoint: CheckpointFiles) -> dict[str, TensorSource]:
    """Return the path and the entry of each tensor, by its name."""
    paths = {name: checkpoint.path(name) for name in checkpoint.headers}
    return {
        tensor.name: (paths[name], tensor)
        for name, header in checkpoint.headers.items()
        for tensor in header.tensors
    }


def _statistics_sources(
    calibration: Calibration, references: References[CheckpointFiles]
) -> dict[str, dict[str, TensorSource]]:
    files = references.calibration
    assert files is not None
    paths = {name: files.path(name) for name in files.headers}
    return {
        layer: {kind: (paths[source.file], source.tensor) for kind, source in own.given()}
        for layer, own in calibration.layers.items()
    }
