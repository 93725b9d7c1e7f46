"""What is to be done to each weight, as a frozen value."""

from dataclasses import dataclass
from typing import Protocol

from schemas.format.header import TensorSpec
from schemas.format.tensor import DTYPE_BITS
from schemas.planning.codecs import Codec
from schemas.planning.forms import FORMS, Form, FormOptions, Part
from schemas.report import KeptReason
from schemas.spec import RankRule

WEIGHT = ".weight"
BIAS = ".bias"
# Any factors of a higher rank than two of this form would hold would not save a parameter.
_TWO_FACTORS = FORMS["svd"].of(FormOptions())


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

    `form` says which tensors replace it, `codec` how each of them is stored. `rank` is an integer where the
    shape alone gives it, a rule where the spectrum is needed, and None where `reason` says why the weight
    stays dense. `rows` are outputs and `columns` inputs, also where the weight is stored `transposed`;
    `calibrated` says that there is a Gram matrix of its inputs. Ranks are multiples of `align` and at least
    `min_rank`; `weight` is how much the squared error counts under a budget. In the `dense_layout` the
    factors are multiplied out and stored in place of the weight.
    """

    name: str
    rows: int
    columns: int
    dtype: str
    form: Form
    codec: Codec
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
    def shape(self) -> tuple[int, ...]:
        """The weight's shape as it is stored."""
        return self._as_stored(self._map)

    @property
    def break_even_rank(self) -> int:
        """The largest rank that saves a parameter."""
        return self.form.break_even_rank(self._map)

    @property
    def num_vectors(self) -> int:
        """How many singular vectors are enough for any form and rank that saves a parameter."""
        return max(1, _TWO_FACTORS.break_even_rank(self._map))

    @property
    def ranks(self) -> range:
        """The allowed ranks, ascending."""
        return self.form.ranks(self._map, align=self.align, least=self.min_rank)

    @property
    def parameters_before(self) -> int:
        """Elements of the dense weight."""
        return self.rows * self.columns

    @property
    def bytes_before(self) -> int:
        """Bytes of the dense weight."""
        return self.parameters_before * DTYPE_BITS[self.dtype] // 8

    def ratio_rank(self, ratio: float) -> int:
        """Return the largest rank that stores at most this share of the parameters, or 0."""
        return self.form.ratio_rank(self._map, ratio)

    def parameters_after(self, rank: int | None) -> int:
        """Elements stored at that rank; None: kept dense."""
        if rank is None or self.dense_layout:
            return self.parameters_before
        return self.factor_parameters(rank)

    def factor_parameters(self, rank: int) -> int:
        """Elements of the factors of that rank, also where they are multiplied out."""
        return self.form.parameters(self._map, rank)

    def bytes_after(self, rank: int | None) -> int:
        """Bytes stored at that rank; None: kept dense, byte for byte."""
        if rank is None:
            return self.bytes_before
        return sum(spec.nbytes for spec in self.stored_tensors(rank))

    def stored_tensors(self, rank: int) -> tuple[TensorSpec, ...]:
        """Return what replaces the weight at that rank, in the form's order, input side first."""
        if self.dense_layout:
            return self.codec.tensors(self.tensor, self.shape)
        return tuple(spec for part in self.form.parts(self._map, rank) for spec in self._encoded(part))

    @property
    def bias_name(self) -> str:
        """Name of the bias where the weight is replaced by factors."""
        return f"{self.name}.{self.form.bias}"

    @property
    def _map(self) -> tuple[int, int]:
        return self.rows, self.columns

    def _encoded(self, part: Part) -> tuple[TensorSpec, ...]:
        name, shape = f"{self.name}.{part.name}", self._as_stored(part.shape)
        return (
            self.codec.tensors(name, shape) if part.dtype is None else (TensorSpec(name, part.dtype, shape),)
        )

    def _as_stored(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[::-1] if self.transposed else shape


@dataclass(frozen=True, slots=True)
class Plan:
    """Every selected weight in the checkpoint's order, and what is likely not meant."""

    layers: tuple[LayerPlan, ...]
    warnings: tuple[str, ...]
