"""The report: what was done to each weight, in numbers that anyone can recompute from the two files."""

from typing import Any, Literal

from pydantic import Field

from schemas.base import Output
from schemas.checkpoint import FileInfo
from schemas.planning.forms import Selector

Outcome = Literal["factored", "kept"]
DecompositionOrigin = Literal["computed", "cached"]
REPORT_NAME = "report.json"

KEPT_REASONS = {
    "no_saving": "Factors of the rank asked for would hold as many parameters as the weight, or more.",
    "rank_zero": "The ratio leaves no room for factors of the least rank that is allowed.",
    "not_finite": "The weight holds NaN or infinity.",
    "not_converged": "No method of the ladder gave factors that pass the check.",
    "out_of_range": "The factors do not fit the storage dtype's range, or W's squares that of float64.",
    "names_taken": "The checkpoint already has a tensor under one of the factors' names.",
    "kept_by_budget": "The budget is spent best where this weight is kept whole.",
}
KeptReason = Literal[
    "no_saving", "rank_zero", "not_finite", "not_converged", "out_of_range", "names_taken", "kept_by_budget"
]


class CheckpointReport(Output):
    """One side of the work: the input or the output."""

    files: tuple[FileInfo, ...] = Field(description="The files, the index included.")
    parameters: int = Field(description="Elements of all tensors.", examples=[22713728])
    bytes: int = Field(description="Size of all files.", examples=[90868376])


class Savings(Output):
    """Sums over every tensor of the checkpoint, before and after."""

    parameters_before: int = Field(description="Elements of all tensors before.", examples=[22713728])
    parameters_after: int = Field(description="Elements of all tensors after.", examples=[17317760])
    parameter_savings: float = Field(description="1 - after/before.", examples=[0.2376])
    compression_factor: float = Field(description="before/after.", examples=[1.312])
    bytes_before: int = Field(description="Bytes of all tensors before.", examples=[90856960])
    bytes_after: int = Field(description="Bytes of all tensors after.", examples=[69273088])
    layers_factored: int = Field(description="Selected weights that were factored.", examples=[37])
    layers_kept: int = Field(description="Selected weights that were kept dense.", examples=[0])


class Totals(Savings):
    """What was saved, at what error, in what time."""

    relative_error: float = Field(
        description="sqrt(sum of squared errors / sum of squared norms) over the factored layers.",
        examples=[0.48],
    )
    # Jobs that a release before these two fields has finished lack them.
    weighted_error: float | None = Field(
        default=None,
        description="The same of the outputs, over the calibrated layers; null where there are none.",
        examples=[0.31],
    )
    error_over_optimal: float | None = Field(
        default=None,
        description="sqrt(sum of squared relative errors / sum of squares of the least possible at the same "
        "ranks) over the factored layers, of the outputs where calibrated; null where all the least are 0.",
        examples=[1.22],
    )
    seconds: float = Field(description="Work time of the attempt that finished.", examples=[4.2])


class LayerReport(Output):
    """One selected weight."""

    name: str = Field(description="The module's name.", examples=["encoder.layer.0.attention.self.query"])
    tensor: str = Field(
        description="The tensor's name.", examples=["encoder.layer.0.attention.self.query.weight"]
    )
    shape: tuple[int, ...] = Field(description="Rows and columns, as stored.", examples=[[384, 384]])
    transposed: bool = Field(
        description="Whether it is stored as [inputs, outputs], and its factors too.", examples=[False]
    )
    calibrated: bool = Field(
        description="Whether the calibration holds the Gram matrix of its inputs.", examples=[False]
    )
    dtype: str = Field(description="The storage dtype in the input.", examples=["F32"])
    outcome: Outcome = Field(description="`factored` or `kept`.", examples=["factored"])
    reason: KeptReason | None = Field(
        description="Why it was kept; null where it was factored.", examples=[None]
    )
    method: str = Field(description="The method.", examples=["svd"])
    selector: Selector | None = Field(description="The selector; null for svd.", examples=[None])
    rank: int | None = Field(description="The rank; null where it was kept.", examples=[96])
    break_even_rank: int = Field(description="The largest rank that saves a parameter.", examples=[191])
    parameters_before: int = Field(description="Elements before.", examples=[147456])
    parameters_after: int = Field(description="Elements after.", examples=[73728])
    bytes_before: int = Field(description="Bytes before.", examples=[589824])
    bytes_after: int = Field(description="Bytes after.", examples=[294912])
    relative_error: float | None = Field(
        description="Frobenius norm of the difference over that of the weight, of the factors as stored.",
        examples=[0.46],
    )
    optimal_error: float | None = Field(
        description="The best possible at that rank; null where it is not known, as for calibrated layers.",
        examples=[0.46],
    )
    weighted_error: float | None = Field(
        description="Frobenius norm of the difference of the outputs over that of the outputs, by the "
        "calibration; null where the layer is not calibrated.",
        examples=[0.21],
    )
    optimal_weighted_error: float | None = Field(
        description="The best possible error of the outputs at that rank.", examples=[0.21]
    )
    decomposition: DecompositionOrigin | None = Field(
        description="Whether the job `computed` its decomposition or found it `cached` by an earlier job; "
        "null where it came to none.",
        examples=["computed"],
    )
    singular_values: tuple[float, ...] | None = Field(
        description="A sample of the spectrum, at most 256 points; of W·G^(1/2) where calibrated.",
        examples=[[3.1, 2.9, 2.2]],
    )
    singular_value_indices: tuple[int, ...] | None = Field(
        description="Which singular values these are, from 0; null where they are all of them.",
        examples=[None],
    )
    columns: tuple[int, ...] | None = Field(
        description="The inputs whose columns cur or cx chose, ascending.", examples=[None]
    )
    rows: tuple[int, ...] | None = Field(
        description="The outputs whose rows cur chose, ascending.", examples=[None]
    )
    seconds: float = Field(description="Time spent on this weight.", examples=[0.03])


class Report(Output):
    """The whole report."""

    version: Literal[1] = Field(description="The version of this format.", examples=[1])
    job_id: str | None = Field(description="The job; null for local work.", examples=["J5b0…"])
    created_at: str = Field(description="When the report was made.", examples=["2026-01-02T03:04:05Z"])
    spec: dict[str, Any] = Field(
        description="The spec with its defaults.", examples=[{"method": "svd", "rank": {"ratio": 0.5}}]
    )
    environment: dict[str, str] = Field(
        description="What the numbers were computed with.", examples=[{"device": "cpu", "torch": "2.13.0"}]
    )
    warnings: tuple[str, ...] = Field(
        description="What is likely not meant, such as a pattern that matches nothing.", examples=[[]]
    )
    input: CheckpointReport = Field(description="What came in.")
    calibration: tuple[FileInfo, ...] | None = Field(
        description="The files of the calibration; null where there was none.", examples=[None]
    )
    output: CheckpointReport = Field(description="What goes out; the report itself is not counted.")
    totals: Totals = Field(description="Sums over every tensor of the checkpoint.")
    layers: tuple[LayerReport, ...] = Field(description="Every selected weight.")
