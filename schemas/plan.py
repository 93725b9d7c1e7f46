"""The JSON document of a plan: what a job would do to each selected weight."""

from pydantic import Field

from schemas.base import Output
from schemas.report import KeptReason, LeftOut, Outcome, Savings


class RankBounds(Output):
    """Bounds of a rank that depends on the spectrum, provided that the layer is factored."""

    least: int = Field(description="Smallest possible rank.", examples=[1])
    most: int = Field(description="Largest possible rank.", examples=[191])


class PlannedLayer(Output):
    """The plan for one selected weight."""

    name: str = Field(description="Name of the module.", examples=["encoder.layer.0.output.dense"])
    tensor: str = Field(description="Name of the tensor.", examples=["encoder.layer.0.output.dense.weight"])
    shape: tuple[int, ...] = Field(description="Rows and columns, as stored.", examples=[[384, 384]])
    shape_after: tuple[int, ...] | None = Field(
        default=None,
        description="Shape of the smaller weight, as stored, where neurons are cut; null otherwise.",
        examples=[None],
    )
    pair: str | None = Field(
        default=None,
        description="The module behind the neurons of the MLP of which neurons are cut; null otherwise.",
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
    encoding: str | None = Field(
        default=None,
        description="How the input stores a weight that is quantized; null otherwise.",
        examples=[None],
    )
    outcome: Outcome = Field(description="`factored` or `kept`.", examples=["factored"])
    reason: KeptReason | None = Field(
        description="Why the weight would be kept dense; null where it is factored.", examples=[None]
    )
    method: str = Field(description="The method.", examples=["svd"])
    rank: int | None = Field(
        description="The rank; 0 for a quantised form without factors, null where the weight is kept or the "
        "rank is not known yet.",
        examples=[96],
    )
    rank_bounds: RankBounds | None = Field(
        description="Bounds of a rank that depends on the spectrum; null otherwise.", examples=[None]
    )
    break_even_rank: int = Field(
        description="Largest rank that saves a parameter; of a quantised form or weight, bytes.",
        examples=[191],
    )
    parameters_before: int = Field(description="Elements before.", examples=[147456])
    parameters_after: int = Field(
        description="Elements after; an upper bound where `rank_bounds` is given.", examples=[73728]
    )
    bytes_before: int = Field(description="Bytes before.", examples=[589824])
    bytes_after: int = Field(
        description="Bytes after; an upper bound where `rank_bounds` is given.", examples=[294912]
    )


class PlanTotals(Savings):
    """The savings that the plan predicts."""

    exact: bool = Field(
        description="False if a rank depends on a spectrum; the sums after are then upper bounds.",
        examples=[True],
    )


class PlanDocument(Output):
    """The response of POST /v1/plans."""

    checkpoint: str | None = Field(
        description="Id of the checkpoint; null for a plan from headers.", examples=["my-model"]
    )
    warnings: tuple[str, ...] = Field(
        description="What is odd about the checkpoint, and probable mistakes in the spec.", examples=[[]]
    )
    not_selected: LeftOut
    layers: tuple[PlannedLayer, ...] = Field(description="All selected weights.")
    totals: PlanTotals = Field(description="Sums over all tensors of the checkpoint.")
