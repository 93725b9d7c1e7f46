"""A plan as the document that a client reads."""

from collections.abc import Sequence

from pydantic import Field

from schemas.account import ParameterAccount
from schemas.base import Output
from schemas.budget import shares_budget
from schemas.compression import Method
from schemas.plan import LayerPlan, Plan, Tensor
from schemas.rankrules import RankRule, SpecRule
from schemas.report import KeptReason, Outcome, Savings
from schemas.tensor import DTYPE_BITS


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
    method: Method = Field(description="The method.", examples=["svd"])
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

    checkpoint: str = Field(description="The checkpoint's id.", examples=["my-model"])
    warnings: tuple[str, ...] = Field(description="What is likely not meant.", examples=[[]])
    layers: tuple[PlannedLayer, ...] = Field(description="Every selected weight.")
    totals: PlanTotals = Field(description="Sums over every tensor of the checkpoint.")


def plan_document(checkpoint: str, tensors: Sequence[Tensor], plan: Plan) -> PlanDocument:
    """Show a plan in the report's terms."""
    layers = tuple(_planned(layer) for layer in plan.layers)
    parameters = sum(tensor.parameters for tensor in tensors)
    after = parameters + sum(x.parameters_after - x.parameters_before for x in layers)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    bytes_after = nbytes + sum(x.bytes_after - x.bytes_before for x in layers)
    open_budget = next((layer.rank for layer in plan.layers if shares_budget(layer)), None)
    if isinstance(open_budget, SpecRule):
        spared = _spared(plan, open_budget)
        after = min(after, parameters - spared)
        bytes_after = min(bytes_after, open_budget.budget_bytes or nbytes - spared * _least_item(plan))
    totals = PlanTotals(
        parameters_before=parameters,
        parameters_after=after,
        parameter_savings=1 - after / parameters if parameters else 0.0,
        compression_factor=parameters / after if after else 1.0,
        bytes_before=nbytes,
        bytes_after=bytes_after,
        layers_factored=sum(x.outcome == "factored" for x in layers),
        layers_kept=sum(x.outcome == "kept" for x in layers),
        exact=all(x.rank_bounds is None for x in layers),
    )
    return PlanDocument(checkpoint=checkpoint, warnings=plan.warnings, layers=layers, totals=totals)


def _spared(plan: Plan, rule: SpecRule) -> int:
    """Return how many parameters a budget spares at least, where it is one of parameters that are stored."""
    if rule.budget is None or any(layer.dense_layout for layer in plan.layers):
        return 0
    account = ParameterAccount(plan.layers, rule.budget)
    return account.total({}) - account.limit


def _least_item(plan: Plan) -> int:
    """Return the least bytes of a parameter that is spared; 0 where factors may be wider than the weight."""
    if any(layer.stored_dtype != layer.dtype for layer in plan.layers):
        return 0
    return min(DTYPE_BITS[layer.dtype] for layer in plan.layers) // 8


def _planned(layer: LayerPlan) -> PlannedLayer:
    open_rank = isinstance(layer.rank, RankRule)
    rank = layer.rank if isinstance(layer.rank, int) else None
    return PlannedLayer(
        name=layer.name,
        tensor=layer.tensor,
        shape=layer.shape,
        transposed=layer.transposed,
        calibrated=layer.calibrated,
        dtype=layer.dtype,
        outcome="factored" if layer.reason is None else "kept",
        reason=layer.reason,
        method=layer.method,
        rank=rank,
        rank_bounds=RankBounds(least=layer.ranks[0], most=layer.ranks[-1]) if open_rank else None,
        break_even_rank=layer.break_even_rank,
        parameters_before=layer.parameters_before,
        parameters_after=layer.parameters_after(rank),
        bytes_before=layer.bytes_before,
        bytes_after=_bytes_bound(layer) if open_rank else layer.bytes_after(rank),
    )


def _bytes_bound(layer: LayerPlan) -> int:
    """Bound the bytes where the rank is open: a wider storage dtype may outweigh the parameters saved."""
    return max(layer.bytes_after(None), layer.bytes_after(layer.ranks[-1]))
