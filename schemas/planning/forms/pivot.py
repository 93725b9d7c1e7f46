"""The form `pivot`: the product of `svd`, as some of its rows and the coefficients that give the others."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar, Self

from schemas.planning.forms.base import Form, FormOptions, StoredMatrix, register

# An index has the size of two 16-bit numbers. Counted so, a rank that saves numbers never adds bytes.
NUMBERS_PER_INDEX = 2


@register
@dataclass(frozen=True)
class Pivot(Form):
    """Ŵ as k of its rows, `0.weight` [k, n], and coefficients of the others, `1.weight` [m - k, k].

    `rows` [k] says which rows those are, ascending. The other rows follow in their order.
    """

    name: ClassVar[str] = "pivot"

    @classmethod
    def of(cls, options: FormOptions) -> Self:  # noqa: ARG003 - it has no options
        return cls()

    @property
    def bias(self) -> str:
        return "bias"

    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:
        outputs, inputs = shape
        return (
            StoredMatrix("0.weight", (rank, inputs)),
            StoredMatrix("1.weight", (outputs - rank, rank)),
            StoredMatrix("rows", (rank,), dtype="I32"),
        )

    def rounding(self, share: float, rank: int) -> float:
        # The errors of k coefficients add up in each of the other rows; measured at ranks from 8 to 100.
        return share * (1 + rank / 10)

    def parameters(self, shape: tuple[int, ...], rank: int) -> int:
        return rank * (sum(shape) - rank)

    def break_even_rank(self, shape: tuple[int, ...]) -> int:
        outputs, inputs = shape
        dense = outputs * inputs
        ranks = range(1, min(shape))

        def numbers(rank: int) -> int:
            return self.parameters(shape, rank) + NUMBERS_PER_INDEX * rank

        return bisect_right(ranks, dense - 1, key=numbers)
