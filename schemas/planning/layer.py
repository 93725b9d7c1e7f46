"""What is to be done to each weight, as a frozen value."""

from dataclasses import dataclass
from typing import Protocol

from schemas.format.tensor import DTYPE_BITS
from schemas.planning.ranks import allowed_ranks, break_even_rank, factor_parameters
from schemas.report import KeptReason
from schemas.spec import Method, RankRule, Selector

WEIGHT = ".weight"
BIAS = ".bias"
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


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
    `reason` says why the weight stays dense. `rows` are outputs and `columns` inputs, also where the weight
    is stored `transposed`; `calibrated` says that a Gram matrix of its inputs is there. Ranks are multiples
    of `align` and at least `min_rank`; `weight` is how much the squared error counts under a budget.
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
    transposed: bool = False
    calibrated: bool = False
    align: int = 1
    min_rank: int = 1
    weight: float = 1.0

    @property
    def tensor(self) -> str:
        """The weight's name in the input."""
        return self.name + WEIGHT

    @property
    def shape(self) -> tuple[int, int]:
        """The weight's shape as it is stored."""
        return self._stored(self.rows, self.columns)

    @property
    def break_even_rank(self) -> int:
        """The largest rank that saves a parameter."""
        return break_even_rank(self.rows, self.columns, factors=self.factors)

    @property
    def extent(self) -> int:
        """How many singular vectors serve whatever is asked: no factors of a higher rank save a parameter."""
        return max(1, break_even_rank(self.rows, self.columns, factors=2))

    @property
    def ranks(self) -> range:
        """The ranks it may have, ascending."""
        return allowed_ranks(
            self.rows, self.columns, factors=self.factors, align=self.align, least=self.min_rank
        )

    @property
    def parameters_before(self) -> int:
        """Elements of the dense weight."""
        return self.rows * self.columns

    @property
    def bytes_before(self) -> int:
        """Bytes of the dense weight."""
        return self.parameters_before * DTYPE_BITS[self.dtype] // 8

    def parameters_after(self, rank: int | None) -> int:
        """Elements stored at that rank; None: kept dense."""
        if rank is None or self.dense_layout:
            return self.parameters_before
        return factor_parameters(self.rows, self.columns, rank, factors=self.factors)

    def bytes_after(self, rank: int | None) -> int:
        """Bytes stored at that rank; None: kept dense, byte for byte."""
        dtype = self.dtype if rank is None else self.stored_dtype
        return self.parameters_after(rank) * DTYPE_BITS[dtype] // 8

    def factor_shapes(self, rank: int) -> tuple[tuple[int, int], ...]:
        """Shapes of the factors, input side first, as a stock Sequential of such layers holds them."""
        core = ((rank, rank),) if self.factors == 3 else ()
        return (self._stored(rank, self.columns), *core, self._stored(self.rows, rank))

    def factor_names(self) -> tuple[str, ...]:
        """Names of the factors, input side first."""
        return tuple(f"{self.name}.{i}{WEIGHT}" for i in range(self.factors))

    def bias_name(self) -> str:
        """Name of the bias beside the last factor."""
        return f"{self.name}.{self.factors - 1}{BIAS}"

    def _stored(self, outputs: int, inputs: int) -> tuple[int, int]:
        return (inputs, outputs) if self.transposed else (outputs, inputs)


@dataclass(frozen=True, slots=True)
class Plan:
    """Every selected weight in the checkpoint's order, and what is likely not meant."""

    layers: tuple[LayerPlan, ...]
    warnings: tuple[str, ...]
