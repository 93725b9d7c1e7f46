"""The base classes of forms, and the table of all forms."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, Self, TypeVar

from schemas.planning.codecs import Codec

Selector = Literal["qdeim", "deim", "cpqr", "osinsky", "leverage", "linear_time"]
Storage = Literal["three", "two"]


@dataclass(frozen=True, slots=True)
class FormOptions:
    """The options of a spec that concern forms; each form uses those that it has."""

    selector: Selector = "qdeim"
    storage: Storage = "three"
    group: int = 64


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How a weight is rounded: to integers of so many bits, with one scale for each `group` of inputs.

    `group` is None where each row has one scale.
    """

    bits: int
    group: int | None = None


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """One stored matrix or vector: its name below the module, and its shape [outputs, inputs].

    A matrix with a `dtype` of its own is stored as it is, one with a `codec` of its own by that codec, as
    [outputs, inputs] also where the weight is transposed. All others are stored by the codec of the layer.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str | None = None
    codec: Codec | None = None

    @property
    def by_layer_codec(self) -> bool:
        """Whether the codec of the layer stores the matrix."""
        return self.dtype is None and self.codec is None


@dataclass(frozen=True)
class Form(ABC):
    """One way to replace a weight; a frozen value, so that plans can be compared.

    `selector` says how columns and rows are chosen; it is None for forms that choose none. In all methods,
    `shape` is [outputs, inputs], also where the weight is stored transposed.
    """

    name: ClassVar[str]
    # Whether ranks can be chosen; a form without them has rank 0.
    has_ranks: ClassVar[bool] = True
    # Whether the error at each rank follows from singular values, so that a budget can compare forms.
    known_by_spectrum: ClassVar[bool] = True
    # Whether that spectrum is one matrix', whose decomposition gives the factors and is worth keeping.
    has_decomposition: ClassVar[bool] = True
    # How the weight is rearranged before it is decomposed, if it is.
    unfolding: ClassVar[str] = ""
    selector: Selector | None = None

    @classmethod
    @abstractmethod
    def of(cls, options: FormOptions) -> Self:
        """Build the form from the options of a spec."""

    @property
    @abstractmethod
    def bias(self) -> str:
        """New name of the module's bias, below the module."""

    @abstractmethod
    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:
        """Return what is stored at a rank, in the order of computation: the input side first."""

    @property
    def quantizer(self) -> Quantizer | None:
        """How the weight is rounded, if it is: factors then correct what rounding loses."""
        return None

    def rounding(self, share: float, rank: int) -> float:  # noqa: ARG002 - of most forms it is the codec's
        """Return the expected squared error of rounding the stored matrices, as a share of what they hold.

        `share` is that of the codec for factors of equal size.
        """
        return share

    def takes_width(self, columns: int) -> bool:  # noqa: ARG002 - most forms take any
        """Return whether the form can store a weight with so many inputs."""
        return True

    def applies_to(self, shape: tuple[int, ...]) -> bool:
        """Return whether the form can replace a weight of this shape; plans hold matrices only."""
        return len(shape) == 2

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the sides of the matrix that is decomposed."""
        rows, columns = shape
        return rows, columns

    def full_rank(self, shape: tuple[int, ...]) -> int:
        """Return the rank that has no error."""
        return min(self.matrix_shape(shape))

    def parameters(self, shape: tuple[int, ...], rank: int) -> int:
        """Return the number of elements at a rank, indices left out; it must increase with the rank."""
        matrices = self.stored_matrices(shape, rank)
        return sum(math.prod(matrix.shape) for matrix in matrices if matrix.dtype is None)

    def largest_rank(self, shape: tuple[int, ...], parameters: int) -> int:
        """Return the largest rank up to min(shape) that stores at most this many elements, or 0."""
        ranks = range(1, min(shape) + 1)
        return bisect_right(ranks, parameters, key=lambda rank: self.parameters(shape, rank))

    def break_even_rank(self, shape: tuple[int, ...]) -> int:
        """Return the largest rank that stores fewer parameters than the dense weight, or 0."""
        return self.largest_rank(shape, math.prod(shape) - 1)

    def ratio_rank(self, shape: tuple[int, ...], ratio: float) -> int:
        """Return the largest rank that stores at most this share of the weight's parameters, or 0.

        The ratio is the decimal in the spec, not the nearest double: 0.1 of 1000 is 100.
        """
        return self.largest_rank(shape, math.floor(Fraction(repr(ratio)) * math.prod(shape)))

    def ranks(self, shape: tuple[int, ...], *, align: int = 1, least: int = 1) -> range:
        """Return the multiples of `align`, from `least` up, that save a parameter."""
        first = -(-least // align) * align
        return range(first, self.break_even_rank(shape) + 1, align)


class Chain(Form):
    """A product of factors that approximates the weight; they load into a Sequential of linear layers."""

    @property
    @abstractmethod
    def num_factors(self) -> int:
        """Number of factors; all inner sizes are the rank."""

    @property
    def bias(self) -> str:
        return f"{self.num_factors - 1}.bias"

    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:
        outputs, inputs = shape
        sizes = (inputs, *[rank] * (self.num_factors - 1), outputs)
        return tuple(StoredMatrix(f"{i}.weight", (sizes[i + 1], sizes[i])) for i in range(self.num_factors))

    def parameters(self, shape: tuple[int, ...], rank: int) -> int:
        # The sum over `stored_matrices` in closed form, since a budget needs it at every rank of every layer.
        return rank * (shape[0] + shape[1] + (self.num_factors - 2) * rank)


FORMS: dict[str, type[Form]] = {}
F = TypeVar("F", bound=type[Form])


def register(form: F) -> F:
    """Register a form under its name, which then is a valid `method` of a spec."""
    FORMS[form.name] = form
    return form
