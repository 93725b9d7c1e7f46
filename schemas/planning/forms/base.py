"""What every form has: the tensors it stores at each rank, and therefore what a rank costs."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, Self, TypeVar

Selector = Literal["qdeim", "deim", "cpqr", "osinsky", "leverage", "linear_time"]
Storage = Literal["three", "two"]


@dataclass(frozen=True, slots=True)
class FormOptions:
    """What a spec says about forms; each form takes the options that it knows."""

    selector: Selector = "qdeim"
    storage: Storage = "three"


@dataclass(frozen=True, slots=True)
class Part:
    """One stored matrix or vector: its name below the module, and its shape, outputs before inputs.

    `dtype` is None where the codec of the layer decides.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str | None = None


@dataclass(frozen=True)
class Form(ABC):
    """One way to replace a weight; a frozen value, so that plans can be compared.

    `selector` says how columns and rows are chosen; it is None where none are. In all methods `shape` is that
    of the weight as a map, [outputs, inputs], however the weight is stored.
    """

    name: ClassVar[str]
    selector: Selector | None = None

    @classmethod
    @abstractmethod
    def of(cls, options: FormOptions) -> Self:
        """Build the form from the options of a spec."""

    @property
    @abstractmethod
    def bias(self) -> str:
        """Name of the module's bias, below the module."""

    @abstractmethod
    def parts(self, shape: tuple[int, ...], rank: int) -> tuple[Part, ...]:
        """Return what is stored at a rank, in the order of computation, input side first."""

    def applies_to(self, shape: tuple[int, ...]) -> bool:
        """Say whether a weight of this shape can take the form."""
        return len(shape) == 2

    def parameters(self, shape: tuple[int, ...], rank: int) -> int:
        """Return how many elements are stored at a rank; it must rise with the rank."""
        return sum(math.prod(part.shape) for part in self.parts(shape, rank))

    def largest_rank(self, shape: tuple[int, ...], parameters: int) -> int:
        """Return the largest rank up to min(shape) that stores at most so many elements, or 0."""
        ranks = range(1, min(shape) + 1)
        return bisect_right(ranks, parameters, key=lambda rank: self.parameters(shape, rank))

    def break_even_rank(self, shape: tuple[int, ...]) -> int:
        """Return the largest rank that still saves a parameter compared with the dense weight, or 0."""
        return self.largest_rank(shape, math.prod(shape) - 1)

    def ratio_rank(self, shape: tuple[int, ...], ratio: float) -> int:
        """Return the largest rank that stores at most this share of the weight's parameters, or 0.

        The ratio is taken as the decimal it was written as: 0.1 of 1000 is 100, not 100.00000000000000555.
        """
        return self.largest_rank(shape, math.floor(Fraction(repr(ratio)) * math.prod(shape)))

    def ranks(self, shape: tuple[int, ...], *, align: int = 1, least: int = 1) -> range:
        """Return the multiples of `align` from `least` on that still save a parameter, ascending."""
        first = -(-least // align) * align
        return range(first, self.break_even_rank(shape) + 1, align)


class Chain(Form):
    """Factors whose product approximates the weight: the state of a stock Sequential of linear layers."""

    @property
    @abstractmethod
    def num_factors(self) -> int:
        """How many factors there are; all inner sizes are the rank."""

    @property
    def bias(self) -> str:
        return f"{self.num_factors - 1}.bias"

    def parts(self, shape: tuple[int, ...], rank: int) -> tuple[Part, ...]:
        outputs, inputs = shape
        sizes = (inputs, *[rank] * (self.num_factors - 1), outputs)
        return tuple(Part(f"{i}.weight", (sizes[i + 1], sizes[i])) for i in range(self.num_factors))

    def parameters(self, shape: tuple[int, ...], rank: int) -> int:
        # The sum over `parts`, in closed form: a budget asks for it at every rank of every layer.
        return rank * (shape[0] + shape[1] + (self.num_factors - 2) * rank)


FORMS: dict[str, type[Form]] = {}
F = TypeVar("F", bound=type[Form])


def register(form: F) -> F:
    """Make a form known under its name: a spec's `method` can be any registered name."""
    FORMS[form.name] = form
    return form
