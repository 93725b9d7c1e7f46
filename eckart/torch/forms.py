"""How a weight is stored: the tensors below its module, and the weight that they stand for.

Each form here is run by a class of layers in whose state dict the same tensors are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from eckart.torch.matrices import FloatMatrix, Int8Matrix, Kind, Matrix
from eckart.torch.product import product

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

WEIGHT, BIAS = "weight", "bias"
# The codec of factors that a layer runs as they are stored.
INT8 = "int8"
PIVOT, ROWS = "pivot", "rows"
LEAST_FACTORS, MOST_FACTORS = 2, 3


@dataclass(frozen=True, slots=True)
class Form(ABC):
    """How a weight is stored; all names are those below the module.

    `shape` is that of the weight as it is stored when it is dense: [inputs, outputs] where `transposed`, with
    the kernel of a convolution after them.
    """

    transposed: bool

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """The rank of the factors; 0 where there are none."""

    @property
    @abstractmethod
    def bias(self) -> str:
        """The name of the bias, where there is one."""

    @property
    @abstractmethod
    def tensors(self) -> dict[str, Kind]:
        """The stored tensors without the bias, by their names."""

    @property
    @abstractmethod
    def trained(self) -> frozenset[str]:
        """The tensors that a layer has as parameters; all others are buffers, and stay as they are."""

    @abstractmethod
    def weight(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the weight of the stored tensors, in the dtype of the floating ones."""

    def wide_weight(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the weight in float32 at least."""
        return self.weight({name: _wide(tensor) for name, tensor in stored.items()})

    @property
    def told_by_values(self) -> tuple[str, ...]:
        """The names of small tensors whose values may be wrong."""
        return ()

    def wrong_values(self, stored: Mapping[str, Tensor]) -> str | None:
        """Say what is wrong with these values; None where nothing is."""
        del stored
        return None

    def _as_stored(self, outputs: int, inputs: int) -> tuple[int, int]:
        return (inputs, outputs) if self.transposed else (outputs, inputs)


def _wide(tensor: Tensor) -> Tensor:
    is_narrow = tensor.is_floating_point()
    return tensor.to(torch.promote_types(torch.float32, tensor.dtype)) if is_narrow else tensor


@dataclass(frozen=True, slots=True)
class Factors(Form):
    """Matrices that are applied one after the other; `sizes` are inputs, ranks and outputs."""

    sizes: tuple[int, ...]
    codec: str | None = None

    @property
    def matrices(self) -> dict[str, Matrix]:
        """The factors, input side first."""
        kind = Int8Matrix if self.codec == INT8 else FloatMatrix
        shapes = [self._as_stored(outputs, inputs) for inputs, outputs in pairwise(self.sizes)]
        return {factor_name(number): kind(shape) for number, shape in enumerate(shapes)}

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight."""
        return self._as_stored(self.sizes[-1], self.sizes[0])

    @property
    def rank(self) -> int:
        """The first of the inner sizes, which are all the same."""
        return self.sizes[1]

    @property
    def bias(self) -> str:
        """The bias of the last factor."""
        return f"{len(self.sizes) - 2}.{BIAS}"

    @property
    def tensors(self) -> dict[str, Kind]:
        """The factors, and their scales."""
        return _tensors(self.matrices)

    @property
    def trained(self) -> frozenset[str]:
        """The factors, unless they are integers."""
        return frozenset() if self.codec == INT8 else frozenset(self.matrices)

    def values(self, stored: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the factors."""
        return [matrix.value(stored, name) for name, matrix in self.matrices.items()]

    def weight(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Multiply the factors."""
        return product(self.values(stored), transposed=self.transposed)


@dataclass(frozen=True, slots=True)
class Quantized(Form):
    """A matrix of integers, always [outputs, inputs], and perhaps factors that are added to it."""

    matrix: Matrix
    factors: Factors | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight."""
        return self._as_stored(*self.matrix.shape)

    @property
    def rank(self) -> int:
        """The rank of the factors."""
        return self.factors.rank if self.factors else 0

    @property
    def bias(self) -> str:
        """The module's own."""
        return BIAS

    @property
    def tensors(self) -> dict[str, Kind]:
        """The integers with their scales, and the factors."""
        return self.matrix.tensors(WEIGHT) | (self.factors.tensors if self.factors else {})

    @property
    def trained(self) -> frozenset[str]:
        """The factors."""
        return self.factors.trained if self.factors else frozenset()

    def weight(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Add what the integers stand for and the product of the factors."""
        matrix = self.matrix.value(stored, WEIGHT)
        weight = matrix.mT if self.transposed else matrix
        return weight + self.factors.weight(stored) if self.factors else weight

    @property
    def told_by_values(self) -> tuple[str, ...]:
        """The shape that a packed matrix names."""
        return tuple(name for name in self.matrix.tensors(WEIGHT) if name.endswith("_shape"))

    def wrong_values(self, stored: Mapping[str, Tensor]) -> str | None:
        """Compare the named shape with the true one."""
        for name in self.told_by_values:
            if stored[name].tolist() != list(self.matrix.shape):
                return f"{name} says {stored[name].tolist()}, but the layer is {list(self.matrix.shape)}"
        return None


@dataclass(frozen=True, slots=True)
class Pivot(Form):
    """Some rows of the weight, and the coefficients by which they make up the others; `sizes` as in Factors.

    Both matrices are maps as factors are, so those of a transposed weight are transposed.
    """

    sizes: tuple[int, int, int]
    codec: str | None = None

    @property
    def factors(self) -> Factors:
        """The map to the rows, and the one from these to the others."""
        inputs, rank, outputs = self.sizes
        return Factors(self.transposed, (inputs, rank, outputs - rank), self.codec)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight."""
        return self._as_stored(self.sizes[2], self.sizes[0])

    @property
    def rank(self) -> int:
        """The number of rows."""
        return self.sizes[1]

    @property
    def bias(self) -> str:
        """The module's own."""
        return BIAS

    @property
    def tensors(self) -> dict[str, Kind]:
        """Both matrices, and which rows the first one has."""
        return self.factors.tensors | {ROWS: Kind((self.rank,), ("I32",))}

    @property
    def trained(self) -> frozenset[str]:
        """Both matrices."""
        return self.factors.trained

    def weight(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Put all rows in their places."""
        first, second = self.factors.values(stored)
        others = product((first, second), transposed=self.transposed)
        dim = 1 if self.transposed else 0
        places = places_of(stored[ROWS], self.sizes[2])
        return torch.cat((first, others), dim).index_select(dim, places)

    @property
    def told_by_values(self) -> tuple[str, ...]:
        """The numbers of the rows."""
        return (ROWS,)

    def wrong_values(self, stored: Mapping[str, Tensor]) -> str | None:
        """Check that the rows ascend within the weight."""
        rows = stored[ROWS].tolist()
        if rows != sorted(set(rows)) or rows[0] < 0 or rows[-1] >= self.sizes[2]:
            return f"{ROWS} are not {self.rank} different rows of {self.sizes[2]} in ascending order"
        return None


def places_of(rows: Tensor, outputs: int) -> Tensor:
    """Return, for each output, its place where `rows`, ascending, come first and then all others.

    No shape depends on the values, so that this can be exported.
    """
    chosen = torch.zeros(outputs, dtype=torch.int64, device=rows.device)
    chosen = chosen.index_fill(0, rows.long(), 1)
    others = len(rows) + (1 - chosen).cumsum(0) - 1
    return torch.where(chosen == 1, chosen.cumsum(0) - 1, others)


def factor_name(number: int) -> str:
    """Return the name that a factor has below its module."""
    return f"{number}.{WEIGHT}"


def chain_sizes(shapes: Sequence[tuple[int, ...]], *, transposed: bool) -> tuple[int, ...] | None:
    """Return inputs, ranks and outputs of factors, input side first; None where they do not chain."""
    if not LEAST_FACTORS <= len(shapes) <= MOST_FACTORS or any(len(shape) != 2 for shape in shapes):
        return None
    turned = shapes if transposed else [shape[::-1] for shape in shapes]
    if any(first[1] != second[0] for first, second in pairwise(turned)):
        return None
    return (*(shape[0] for shape in turned), turned[-1][1])


def _tensors(matrices: Mapping[str, Matrix]) -> dict[str, Kind]:
    return {name: kind for above, matrix in matrices.items() for name, kind in matrix.tensors(above).items()}
