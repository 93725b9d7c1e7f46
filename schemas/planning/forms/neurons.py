"""The neurons that stay in an MLP as smaller dense weights; no `method` of a spec, but what `pairs` makes."""

from dataclasses import dataclass
from typing import ClassVar, Self

from schemas.planning.forms.base import Form, FormOptions, StoredMatrix


@dataclass(frozen=True)
class _Neurons(Form):
    """A smaller weight under the old name; the rank is the number of neurons."""

    name: ClassVar[str] = "neurons"

    @classmethod
    def of(cls, options: FormOptions) -> Self:  # noqa: ARG003 - it has none
        return cls()

    @property
    def bias(self) -> str:
        return "bias"


@dataclass(frozen=True)
class NeuronRows(_Neurons):
    """Rows of `up` or `gate`, verbatim."""

    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:
        return (StoredMatrix("weight", (rank, shape[1])),)

    def break_even_rank(self, shape: tuple[int, ...]) -> int:
        return shape[0] - 1


@dataclass(frozen=True)
class NeuronColumns(_Neurons):
    """Columns of `down`, fitted again."""

    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:
        return (StoredMatrix("weight", (shape[0], rank)),)

    def break_even_rank(self, shape: tuple[int, ...]) -> int:
        return shape[1] - 1
