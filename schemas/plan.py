"""What would be done to each weight, as a frozen value and as the document a client reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from schemas.base import Output
from schemas.compression import Method, RankRule, Selector
from schemas.ranks import break_even_rank, factor_parameters
from schemas.report import KeptReason, Outcome

WEIGHT = ".weight"
BIAS = ".bias"
FACTORABLE = frozenset({"F64", "F32", "F16", "BF16"})
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class Tensor(Protocol):
    """What planning needs to know of a tensor."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def parameters(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One selected weight and what is to be done with it.

    `rank` is an integer where the shape alone gives it, a rule where the spectrum is needed, and None where
    `reason` says why the weight stays dense.
    """

    name: str
    rows: int
    columns: int
    dtype: str
    stored_dtype: str
    method: Method
    selector: Selector
    factors: int
    dense_layout: bool
    rank: int | RankRule | None
    reason: KeptReason | None

    @property
    def tensor(self) -> str:
        """The weight's name in the input."""
        return self.name + WEIGHT

    @property
    def break_even_rank(self) -> int:
        """The largest rank that saves a parameter."""
        return break_even_rank(self.rows, self.columns, factors=self.factors)

    @property
    def parameters_before(self) -> int:
        """Elements of the dense weight."""
        return self.rows * self.columns

    @property
    def bytes_before(self) -> int:
        """Bytes of the dense weight."""
        return self.parameters_before * ITEM_BYTES[self.dtype]

    def parameters_after(self, rank: int | None) -> int:
        """Elements stored at that rank; None: kept dense."""
        if rank is None or self.dense_layout:
            return self.parameters_before
        return factor_parameters(self.rows, self.columns, rank, factors=self.factors)

    def bytes_after(self, rank: int | None) -> int:
        """Bytes stored at that rank; None: kept dense, byte for byte."""
        dtype = self.dtype if rank is None else self.stored_dtype
        return self.parameters_after(rank) * ITEM_BYTES[dtype]

    def factor_shapes(self, rank: int) -> tuple[tuple[int, int], ...]:
        """Shapes of the factors, input side first, as a stock Sequential holds them."""
        core = ((rank, rank),) if self.factors == 3 else ()
        return ((rank, self.columns), *core, (self.rows, rank))

    def factor_names(self) -> tuple[str, ...]:
        """Names of the factors, input side first."""
        return tuple(f"{self.name}.{i}{WEIGHT}" for i in range(self.factors))

    def bias_name(self) -> str:
        """Name of the bias beside the last factor."""
        return f"{self.name}.{self.factors - 1}{BIAS}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Every selected weight in the checkpoint's order, and what is likely not meant."""

    layers: tuple[LayerPlan, ...]
    warnings: tuple[str, ...]


class RankBounds(Output):
    """Between which ranks a rule that needs the spectrum will land, if the layer is factored at all."""

    least: int = Field(description="The least possible rank.", examples=[1])
    most: int = Field(description="The largest rank that saves a parameter.", examples=[191])


class PlannedLayer(Output):
    """What would be done to one selected weight."""

    name: str = Field(description="The module's name.", examples=["encoder.layer.0.output.dense"])
    tensor: str = Field(description="The tensor's name.", examples=["encoder.layer.0.output.dense.weight"])
    shape: tuple[int, ...] = Field(description="Rows and columns.", examples=[[384, 384]])
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


class PlanTotals(Output):
    """Sums over every tensor of the checkpoint."""

    parameters_before: int = Field(description="Elements of all tensors before.", examples=[22713216])
    parameters_after: int = Field(description="Elements of all tensors after.", examples=[17404800])
    parameter_savings: float = Field(description="1 - after/before.", examples=[0.2337])
    compression_factor: float = Field(description="before/after.", examples=[1.305])
    bytes_before: int = Field(description="Bytes of all tensors before.", examples=[90852864])
    bytes_after: int = Field(description="Bytes of all tensors after.", examples=[69619200])
    layers_factored: int = Field(description="Selected weights that would be factored.", examples=[36])
    layers_kept: int = Field(description="Selected weights that would be kept dense.", examples=[1])
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
    totals = PlanTotals(
        parameters_before=parameters,
        parameters_after=after,
        parameter_savings=1 - after / parameters if parameters else 0.0,
        compression_factor=parameters / after if after else 1.0,
        bytes_before=nbytes,
        bytes_after=nbytes + sum(x.bytes_after - x.bytes_before for x in layers),
        layers_factored=sum(x.outcome == "factored" for x in layers),
        layers_kept=sum(x.outcome == "kept" for x in layers),
        exact=all(x.rank_bounds is None for x in layers),
    )
    return PlanDocument(checkpoint=checkpoint, warnings=plan.warnings, layers=layers, totals=totals)


def _planned(layer: LayerPlan) -> PlannedLayer:
    open_rank = isinstance(layer.rank, RankRule)
    rank = layer.rank if isinstance(layer.rank, int) else None
    return PlannedLayer(
        name=layer.name,
        tensor=layer.tensor,
        shape=(layer.rows, layer.columns),
        dtype=layer.dtype,
        outcome="factored" if layer.reason is None else "kept",
        reason=layer.reason,
        method=layer.method,
        rank=rank,
        rank_bounds=RankBounds(least=1, most=layer.break_even_rank) if open_rank else None,
        break_even_rank=layer.break_even_rank,
        parameters_before=layer.parameters_before,
        parameters_after=layer.parameters_after(rank),
        bytes_before=layer.bytes_before,
        bytes_after=layer.bytes_after(rank),
    )
