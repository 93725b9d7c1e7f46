"""The report: what was done to each weight, in figures that follow from the input and the output."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from schemas.base import Output
from schemas.checkpoint import FileInfo
from schemas.planning.forms import Selector

Outcome = Literal["factored", "kept"]
DecompositionOrigin = Literal["computed", "cached"]
REPORT_NAME = "report.json"

KeptReason = Literal[
    "no_saving",
    "rank_zero",
    "not_finite",
    "not_converged",
    "out_of_range",
    "names_taken",
    "kept_by_budget",
    "more_than_a_linear",
    "adapter",
    "embedding",
    "not_called",
    "tied",
    "unchanged",
    "group",
    "depthwise",
    "kernel_sides",
    "transposed_kernel",
    "shape_differs",
]
# A test checks that every reason has its text here.
KEPT_REASONS: dict[KeptReason, str] = {
    "no_saving": "At that rank, the factors would save no parameters, or no bytes of a quantized weight.",
    "rank_zero": "The ratio allows no factors of the smallest rank, or `auto` finds nothing but noise.",
    "not_finite": "The weight, or its difference to the base, contains NaN or infinity.",
    "not_converged": "No solver gave factors that pass the accuracy check.",
    "out_of_range": "The factors exceed the range of the storage dtype, or the squares of W that of float64.",
    "names_taken": "The checkpoint already has a tensor with the name of a factor.",
    "kept_by_budget": "The budget achieves a smaller total error if this weight stays dense, or is left out.",
    "more_than_a_linear": "The module has tensors beside `weight` and `bias`, such as a scale or a mask.",
    "adapter": "The weight is one of the two matrices of a LoRA adapter.",
    "embedding": "By its name it is an embedding, and an adapter holds differences of linear layers only.",
    "not_called": "An attention with an `in_proj_weight` reads this weight without calling the module.",
    "tied": "Another module has the same weight, by the metadata or as equal bytes that are not selected.",
    "unchanged": "The weight equals that of the base.",
    "group": "The width of the weight is no multiple of `group`, so its rows cannot be cut into groups.",
    "depthwise": "The kernel has one input for each output or group; an override with `conv` factors it.",
    "kernel_sides": "The `conv` is for kernels with another number of sides.",
    "transposed_kernel": "The `conv` does not allow transposed convolutions.",
    "shape_differs": "The tensors of the quantized weight do not agree on its shape.",
}
# Reasons that lie in what a weight is. Such a weight is listed, but counts as one that is not selected.
NOT_LINEAR: frozenset[KeptReason] = frozenset(
    {"more_than_a_linear", "adapter", "embedding", "not_called", "tied", "depthwise", "shape_differs"}
)

# Why a tensor is not selected, but for `exclude` with its pattern. A test checks that the docs have each.
NOT_SELECTED: dict[str, str] = {
    "include": "No pattern of `include` fits the module.",
    "factored_before": "The tensor is a factor that an earlier job has made.",
    "vector": "The tensor has fewer than two dimensions.",
    "dtype": "Tensors of this dtype cannot be factored.",
    "no_lora_pair": "The tensor is in no LoRA pair of which a lower rank is known to be right.",
    "encoding": "The weight is quantized, and names, shapes and config.json do not tell for certain how.",
    "stack": "The tensor has three or more dimensions, such as the weights of all experts in one.",
    "convolution": "The weight belongs to a convolution, and no `conv` is given.",
    "no_module": "The name is `weight` alone, so there is no module to name the factors after.",
    "in_projection": "The weight of an attention, such as `in_proj_weight`, belongs to no module of its own.",
    "recurrent": "The weight of a recurrent layer, such as `weight_ih_l0`, is no module of its own.",
    "reparametrized": "The tensor is a part of a weight, such as `weight_v` of a weight norm.",
    "other_name": "The name does not end in `.weight`.",
}


class NotSelected(Output):
    """Tensors that are not selected by one rule."""

    rule: str = Field(
        description="`exclude` with its pattern, or why the tensors are not selected.",
        examples=["exclude last:embed*"],
    )
    tensors: int = Field(description="Number of tensors.", examples=[1])
    parameters: int = Field(description="Elements of these tensors.", examples=[11720448])
    share: float = Field(description="Their share of all parameters of the checkpoint.", examples=[0.516])
    names: tuple[str, ...] = Field(
        description="The first five names of tensors.", examples=[["embeddings.word_embeddings.weight"]]
    )


LeftOut = Annotated[
    tuple[NotSelected, ...],
    Field(
        description="What is left out, by rule, the largest first; layers with the reasons "
        "`more_than_a_linear`, `adapter`, `embedding`, `not_called`, `tied`, `depthwise` and `shape_differs` "
        "are counted here too."
    ),
]


class CheckpointReport(Output):
    """The input or the output checkpoint, in sums."""

    files: tuple[FileInfo, ...] = Field(description="All files: weights, index and companions.")
    parameters: int = Field(description="Elements of all tensors.", examples=[22713728])
    bytes: int = Field(description="Size of all files.", examples=[90868376])


def parameter_savings(before: int, after: int) -> float:
    """Return the share of the parameters that is saved; 0 for a checkpoint without any."""
    return 1 - after / before if before else 0.0


def compression_factor(before: int, after: int) -> float:
    """Return how many times fewer parameters there are; 1 for a checkpoint without any."""
    return before / after if after else 1.0


class Savings(Output):
    """Sums over all tensors of the checkpoint, before and after."""

    parameters_before: int = Field(description="Elements of all tensors before.", examples=[22713728])
    parameters_after: int = Field(description="Elements of all tensors after.", examples=[17317760])
    parameter_savings: float = Field(description="1 - after/before.", examples=[0.2376])
    compression_factor: float = Field(description="before/after.", examples=[1.312])
    bytes_before: int = Field(description="Bytes of all tensors before.", examples=[90856960])
    bytes_after: int = Field(description="Bytes of all tensors after.", examples=[69273088])
    layers_factored: int = Field(description="Selected weights that were factored.", examples=[37])
    layers_kept: int = Field(description="Selected weights that were kept dense.", examples=[0])


class Totals(Savings):
    """Savings, errors and time of a job."""

    relative_error: float = Field(
        description="sqrt(sum of squared errors / sum of squared norms) over the factored layers.",
        examples=[0.48],
    )
    # Optional, since jobs of earlier releases lack these three fields.
    weighted_error: float | None = Field(
        default=None,
        description="The error of the outputs, in the same way over the calibrated layers; null if there "
        "are none.",
        examples=[0.31],
    )
    predicted_loss: float | None = Field(
        default=None,
        description="Sum of the layers' predicted losses; null if no layer has one.",
        examples=[0.12],
    )
    error_over_optimal: float | None = Field(
        default=None,
        description="sqrt(sum of squared relative errors / sum of squared best possible errors at the same "
        "ranks) over the factored layers, of the outputs where calibrated; null if all the latter are 0.",
        examples=[1.22],
    )
    seconds: float = Field(description="Duration of the successful attempt.", examples=[4.2])


class LayerReport(Output):
    """The result for one selected weight."""

    name: str = Field(description="Name of the module.", examples=["encoder.layer.0.attention.self.query"])
    tensor: str = Field(
        description="Name of the tensor.", examples=["encoder.layer.0.attention.self.query.weight"]
    )
    shape: tuple[int, ...] = Field(
        description="Rows and columns, as stored; of a convolution, its kernel too.", examples=[[384, 384]]
    )
    # Optional, since reports of earlier releases lack it.
    shape_after: tuple[int, ...] | None = Field(
        default=None,
        description="Shape of the smaller weight, as stored, where neurons were cut; null otherwise.",
        examples=[None],
    )
    transposed: bool = Field(
        description="Whether the weight and its factors are stored as [inputs, outputs].", examples=[False]
    )
    calibrated: bool = Field(
        description="Whether the calibration has a Gram matrix of the layer's inputs.", examples=[False]
    )
    dtype: str = Field(
        description="Storage dtype in the input; of a quantized weight, its dtype once decoded.",
        examples=["F32"],
    )
    # Optional, since reports of earlier releases lack it.
    encoding: str | None = Field(
        default=None,
        description="How the input stores a weight that is quantized; null otherwise.",
        examples=[None],
    )
    outcome: Outcome = Field(description="`factored` or `kept`.", examples=["factored"])
    reason: KeptReason | None = Field(
        description="Why the weight was kept dense; null where it was factored.", examples=[None]
    )
    method: str = Field(description="The method.", examples=["svd"])
    selector: Selector | None = Field(description="The selector; null for svd.", examples=[None])
    rank: int | None = Field(
        description="The rank; 0 for a quantised form without factors, null where the weight was kept.",
        examples=[96],
    )
    break_even_rank: int = Field(
        description="Largest rank that saves a parameter; of a quantised form or weight, bytes.",
        examples=[191],
    )
    parameters_before: int = Field(description="Elements before.", examples=[147456])
    parameters_after: int = Field(description="Elements after.", examples=[73728])
    bytes_before: int = Field(description="Bytes before.", examples=[589824])
    bytes_after: int = Field(description="Bytes after.", examples=[294912])
    relative_error: float | None = Field(
        description="‖W - Ŵ‖ / ‖W‖ in the Frobenius norm, for the product Ŵ of the factors as stored.",
        examples=[0.46],
    )
    optimal_error: float | None = Field(
        description="Best possible relative_error at that rank; null where it is unknown, as for "
        "calibrated layers and those that are rounded to integers.",
        examples=[0.46],
    )
    weighted_error: float | None = Field(
        description="The error of the outputs: ‖(W - Ŵ)X‖ / ‖WX‖ for the calibration inputs X; null where "
        "the layer is not calibrated.",
        examples=[0.21],
    )
    optimal_weighted_error: float | None = Field(
        description="Best possible weighted_error at that rank; null where the layer is not calibrated, or "
        "is rounded to integers.",
        examples=[0.21],
    )
    # Optional, since reports of earlier releases lack these two fields.
    predicted_loss: float | None = Field(
        default=None,
        description="The estimated rise of the loss: tr((W - Ŵ)ᵀF(W - Ŵ)G)/N with the Gram matrices of "
        "inputs (G) and gradients (F) over N tokens, G without the mean where the bias is corrected; null "
        "without both.",
        examples=[0.0031],
    )
    bias_corrected: bool = Field(
        default=False,
        description="Whether the bias was changed so that the outputs keep their mean.",
        examples=[False],
    )
    decomposition: DecompositionOrigin | None = Field(
        description="Whether the job `computed` the decomposition or found it `cached`; null without one.",
        examples=["computed"],
    )
    singular_values: tuple[float, ...] | None = Field(
        description="A sample of at most 256 singular values, of W·G^(1/2) where calibrated; fewer where "
        "there are more than 512 layers.",
        examples=[[3.1, 2.9, 2.2]],
    )
    singular_value_indices: tuple[int, ...] | None = Field(
        description="Indices of these singular values, from 0; null if all of them are listed.",
        examples=[None],
    )
    columns: tuple[int, ...] | None = Field(
        description="Columns (inputs) that `cur` or `cx` chose, ascending.", examples=[None]
    )
    rows: tuple[int, ...] | None = Field(
        description="Rows (outputs) that `cur` chose, ascending.", examples=[None]
    )
    seconds: float = Field(description="Time spent on this weight, in seconds.", examples=[0.03])


class Report(Output):
    """The report of a job."""

    version: Literal[1] = Field(description="Version of this format.", examples=[1])
    job_id: str | None = Field(description="Id of the job; null for a local run.", examples=["J5b0…"])
    created_at: str = Field(description="Time of the report.", examples=["2026-01-02T03:04:05Z"])
    spec: dict[str, Any] = Field(
        description="The spec, with defaults filled in.", examples=[{"method": "svd", "rank": {"ratio": 0.5}}]
    )
    environment: dict[str, str] = Field(
        description="Device and versions that the results were computed with.",
        examples=[{"device": "cpu", "torch": "2.13.0"}],
    )
    warnings: tuple[str, ...] = Field(
        description="Probable mistakes in the spec, such as a pattern that matches no layer.", examples=[[]]
    )
    input: CheckpointReport = Field(description="The input checkpoint.")
    calibration: tuple[FileInfo, ...] | None = Field(
        description="Files of the calibration; null without one.", examples=[None]
    )
    # Optional, since reports of earlier releases lack it.
    base: tuple[FileInfo, ...] | None = Field(
        default=None,
        description="Files of the base whose difference to the input was factored; null without one.",
        examples=[None],
    )
    output: CheckpointReport = Field(description="The output checkpoint, without the report itself.")
    totals: Totals = Field(description="Sums over all tensors of the checkpoint.")
    # Optional, since reports of earlier releases lack it.
    not_selected: LeftOut = ()
    how_to_load: str | None = Field(
        default=None,
        description="How a factored result is loaded, and how not; null for a dense one.",
        examples=["Load it with eckart.torch.load_compressed."],
    )
    layers: tuple[LayerReport, ...] = Field(description="All selected weights.")

    def with_companions(self, files: Sequence[FileInfo]) -> Self:
        """Return the report with further output files."""
        nbytes = self.output.bytes + sum(file.size_bytes for file in files)
        output = self.output.model_copy(update={"files": (*self.output.files, *files), "bytes": nbytes})
        return self.model_copy(update={"output": output})
