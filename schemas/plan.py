"""A plan as the document that a client reads."""

from pydantic import Field

from schemas.base import Output
from schemas.report import KeptReason, Outcome, Savings


class RankBounds(Output):
    """Between which ranks a rule that needs the spectra will land, if the layer is factored at all."""

    least: int = Field(description="The least possible rank.", examples=[1])
    most: int = Field(description="The largest possible rank.", examples=[191])


class PlannedLayer(Output):
    """What would be done to one selected weight."""

    name: str = Field(description="The module's name.", examples=["encoder.layer.0.output.dense"])
    tensor: str = Field(description="The tensor's name.", examples=["encoder.layer.0.output.dense.weight"])
    shape: tuple[int, ...] = Field(description="Rows and columns, as stored.", examples=[[384, 384]])
    transposed: bool = Field(
        description="Whether it is stored as [inputs, outputs], and its factors too.", examples=[False]
    )
    calibrated: bool = Field(
        description="Whether the calibration holds the Gram matrix of its inputs.", examples=[False]
    )
    dtype: str = Field(description="The storage dtype in the input.", examples=["F32"])
    outcome: Outcome = Field(description="`factored` or `kept`.", examples=["factored"])
    reason: KeptReason | None = Field(description="Why it would be kept; null otherwise.", examples=[None])
    method: str = Field(description="The method.", examples=["svd"])
    rank: int | None = Field(description="The rank; null where kept or not yet known.", examples=[96])
    rank_bounds: RankBounds | None = Field(
        description="Where the rank depends on the spectrum: its bounds.", examples=[None]
    )
    break_even_rank: int = Field(description="The largest rank that saves a parameter.", examples=[191])
    parameters_before: int = Field(description="Elements before.", examples=[147456])
    parameters_after: int = Field(
        description="Elements after; an upper bound where `rank_bounds` is given.", examples=[73728]
    )
    bytes_before: int = Field(description="Bytes before.", examples=[589824])
    bytes_after: int = Field(
        description="Bytes after; an upper bound where `rank_bounds` is given.", examples=[294912]
    )


class PlanTotals(Savings):
    """What would be saved."""

    exact: bool = Field(
        description="False where a rank depends on a spectrum: sums after are upper bounds.", examples=[True]
    )


class PlanDocument(Output):
    """The answer to POST /v1/plans."""

    checkpoint: str | None = Field(
        description="The checkpoint's id; null for a plan from headers.", examples=["my-model"]
    )
    warnings: tuple[str, ...] = Field(description="What is likely not meant.", examples=[[]])
    layers: tuple[PlannedLayer, ...] = Field(description="Every selected weight.")
    totals: PlanTotals = Field(description="Sums over every tensor of the checkpoint.")
