"""Build the report from finished layers and written files."""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import zip_longest
from math import prod, sqrt

import torch

from schemas.checkpoint import FileInfo
from schemas.format.encodings import EncodedWeight
from schemas.format.errors import listed
from schemas.format.files import CheckpointFiles
from schemas.planning.layer import LayerPlan
from schemas.planning.left_out import not_selected
from schemas.planning.references import NO_REFERENCES, References
from schemas.report import (
    CheckpointReport,
    LayerReport,
    Report,
    Totals,
    compression_factor,
    parameter_savings,
)
from schemas.spec import CompressionSpec
from worker.layer import LayerOutcome
from worker.work_plan import WorkPlan


@dataclass(frozen=True, slots=True)
class ReportedCheckpoint:
    """The input or the output checkpoint: tensors and files, and those of the other inputs."""

    content: CheckpointFiles
    files: tuple[FileInfo, ...]
    reference_files: References[tuple[FileInfo, ...]] = NO_REFERENCES

    @property
    def parameters(self) -> int:
        return self.content.parameters

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.content.tensors)

    def report(self) -> CheckpointReport:
        size_bytes = sum(file.size_bytes for file in self.files)
        return CheckpointReport(files=self.files, parameters=self.parameters, bytes=size_bytes)


class WrongLayers(Exception):  # noqa: N818 - it says what is wrong
    """The finished layers are not those of the plan, so the result must not be published."""


def check_outcomes(work: WorkPlan, outcomes: Sequence[LayerOutcome]) -> None:
    """Raise `WrongLayers` unless the report will have exactly the plan's layers, in its order."""
    planned = [(layer.tensor, layer.shape) for layer in work.layers]
    finished = [(outcome.report.tensor, outcome.report.shape) for outcome in outcomes]
    if finished != planned:
        wrong = next((line for line in zip_longest(planned, finished) if line[0] != line[1]), None)
        raise WrongLayers(f"planned and finished differ: {wrong}")


def make_report(
    work: WorkPlan,
    spec: CompressionSpec,
    outcomes: Sequence[LayerOutcome],
    *,
    before: ReportedCheckpoint,
    after: ReportedCheckpoint,
    job_id: str | None,
    device: torch.device,
    seconds: float,
) -> Report:
    """Build the report of a finished job."""
    return Report(
        version=1,
        job_id=job_id,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        spec=spec.document(),
        environment=_environment(device),
        warnings=(*work.warnings, *_late_warnings(work, outcomes)),
        input=before.report(),
        calibration=before.reference_files.calibration,
        base=before.reference_files.base,
        output=after.report(),
        totals=_totals(work, before, after, outcomes, seconds=seconds),
        not_selected=not_selected(work.plan),
        layers=tuple(outcome.report for outcome in outcomes),
    )


def _totals(
    work: WorkPlan,
    before: ReportedCheckpoint,
    after: ReportedCheckpoint,
    outcomes: Sequence[LayerOutcome],
    *,
    seconds: float,
) -> Totals:
    factored = [outcome for outcome in outcomes if outcome.report.outcome == "factored"]
    # Layers that are kept dense have no error; those that an adapter leaves out have their whole difference.
    squared_norm = sum(outcome.squared_norm for outcome in outcomes)
    squared_error = sum(outcome.squared_error for outcome in outcomes)
    output_norm = sum(outcome.squared_output_norm for outcome in factored)
    output_error = sum(outcome.squared_output_error for outcome in factored)
    calibrated = any(outcome.report.weighted_error is not None for outcome in factored)
    losses = [each.report.predicted_loss for each in factored if each.report.predicted_loss is not None]
    parameters_before = sum(tensor.parameters for tensor in work.planned)
    parameters_after = after.parameters - _uncounted(work.layers, outcomes) - _scales_left(work, outcomes)
    return Totals(
        parameters_before=parameters_before,
        parameters_after=parameters_after,
        parameter_savings=parameter_savings(parameters_before, parameters_after),
        compression_factor=compression_factor(parameters_before, parameters_after),
        bytes_before=before.nbytes,
        bytes_after=after.nbytes,
        relative_error=_relative(squared_error, squared_norm),
        weighted_error=_relative(output_error, output_norm) if calibrated else None,
        predicted_loss=sum(losses) if losses else None,
        error_over_optimal=_over_optimal([outcome.report for outcome in factored]),
        layers_factored=len(factored),
        layers_kept=len(outcomes) - len(factored),
        seconds=seconds,
    )


def _late_warnings(work: WorkPlan, outcomes: Sequence[LayerOutcome]) -> Iterator[str]:
    """Warn of what only the work showed: that nothing can be factored, and weights that are broken."""
    planned = any(layer.reason is None for layer in work.layers)
    if planned and all(outcome.rank is None for outcome in outcomes):
        reasons = ", ".join(sorted({outcome.report.reason or "" for outcome in outcomes}))
        yield f"every selected layer stays dense ({reasons}): the output equals the input"
    broken = [outcome.report.tensor for outcome in outcomes if outcome.report.reason == "not_finite"]
    if broken:
        of = "tensor" if len(broken) == 1 else "tensors"
        or_difference = ", or in the difference to the base," if any(task.base for task in work.tasks) else ""
        yield (
            f"NaN or infinity in {len(broken)} {of}{or_difference}, kept as in the input: {listed(broken)}"
        )


def _uncounted(layers: Sequence[LayerPlan], outcomes: Sequence[LayerOutcome]) -> int:
    """Return how many more elements the files have than parameters: scales, indices, less packing."""
    return sum(
        sum(prod(tensor.shape) for tensor in layer.stored_tensors(outcome.rank))
        - outcome.report.parameters_after
        for layer, outcome in zip(layers, outcomes, strict=True)
        if outcome.rank is not None and layer.pair is None
    )


def _scales_left(work: WorkPlan, outcomes: Sequence[LayerOutcome]) -> int:
    """Return how many more elements the input's quantized weights have than parameters, where they stay."""
    if work.adapter:
        return 0
    factored = {outcome.report.tensor for outcome in outcomes if outcome.rank is not None}
    return sum(
        tensor.elements - tensor.parameters
        for tensor in work.planned
        if isinstance(tensor, EncodedWeight) and tensor.name not in factored
    )


def _relative(squared_error: float, squared_norm: float) -> float:
    return sqrt(squared_error / squared_norm) if squared_norm else 0.0


def _over_optimal(layers: Sequence[LayerReport]) -> float | None:
    """Return the ratio of the layers' errors to the best possible ones, both summed as squares."""
    actual = best_total = 0.0
    for layer in layers:
        error, best = (
            (layer.relative_error, layer.optimal_error)
            if layer.weighted_error is None
            else (layer.weighted_error, layer.optimal_weighted_error)
        )
        if error is not None and best is not None:
            actual += error**2
            best_total += best**2
    return sqrt(actual / best_total) if best_total > 0 else None


def _environment(device: torch.device) -> dict[str, str]:
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "device": device.type,
        **gpu,
        "eckart": version("eckart"),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
