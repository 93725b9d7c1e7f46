"""How one matrix is stored in a form that a layer runs as it is: its tensors, and its values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from eckart.torch.manifest import DTYPES
from eckart.torch.packing import unpacked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SCALE, PACKED, SHAPE = "_scale", "_packed", "_shape"
FLOATS = tuple(DTYPES)
INTEGERS = {"I8": torch.int8, "I32": torch.int32, "I64": torch.int64}


class Kind(NamedTuple):
    """The shape of a stored tensor, and the dtypes that it may have."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOATS


@dataclass(frozen=True, slots=True)
class Matrix(ABC):
    """A matrix of some shape, the rows first."""

    shape: tuple[int, int]

    @abstractmethod
    def tensors(self, name: str) -> dict[str, Kind]:
        """Return what stores a matrix of this name."""

    @abstractmethod
    def value(self, stored: Mapping[str, Tensor], name: str) -> Tensor:
        """Return the matrix, in the dtype of its floating tensor."""


@dataclass(frozen=True, slots=True)
class FloatMatrix(Matrix):
    """One floating tensor."""

    def tensors(self, name: str) -> dict[str, Kind]:
        return {name: Kind(self.shape)}

    def value(self, stored: Mapping[str, Tensor], name: str) -> Tensor:
        return stored[name]


@dataclass(frozen=True, slots=True)
class Int8Matrix(Matrix):
    """Eight bits per element, and a scale for each row."""

    def tensors(self, name: str) -> dict[str, Kind]:
        return {name: Kind(self.shape, ("I8",)), name + SCALE: Kind((self.shape[0], 1))}

    def value(self, stored: Mapping[str, Tensor], name: str) -> Tensor:
        return int8_value(stored[name], stored[name + SCALE])


@dataclass(frozen=True, slots=True)
class PackedMatrix(Matrix):
    """Some bits per element in words of 32, and a scale for each group of columns in a row."""

    bits: int
    width: int
    group: int

    def tensors(self, name: str) -> dict[str, Kind]:
        rows, columns = self.shape
        return {
            name + PACKED: Kind((rows, self.width), ("I32",)),
            name + SCALE: Kind((rows, columns // self.group)),
            name + SHAPE: Kind((2,), ("I64",)),
        }

    def value(self, stored: Mapping[str, Tensor], name: str) -> Tensor:
        return packed_value(stored[name + PACKED], stored[name + SCALE], self)


def int8_value(integers: Tensor, scale: Tensor) -> Tensor:
    """Multiply each row by its scale."""
    return integers.to(scale.dtype).mul_(scale)


def packed_value(words: Tensor, scale: Tensor, matrix: PackedMatrix) -> Tensor:
    """Unpack integers, and multiply each group in a row by its scale."""
    integers = unpacked(words, matrix.bits, matrix.shape).reshape(matrix.shape[0], -1, matrix.group)
    return integers.to(scale.dtype).mul_(scale[..., None]).view(matrix.shape)
