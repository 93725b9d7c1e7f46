"""The quantised forms: the weight rounded to integers, alone or corrected by factors of low rank."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

from schemas.planning.codecs import INT8, Codec, PackedCodec
from schemas.planning.forms.base import Form, FormOptions, Quantizer, StoredMatrix, register

BASE = "weight"


@dataclass(frozen=True)
class Quantized(Form):
    """W ≈ Q, its rows or groups of a row each with a scale of its own."""

    has_ranks: ClassVar[bool] = False
    bits: ClassVar[int]

    @classmethod
    def of(cls, options: FormOptions) -> Self:  # noqa: ARG003 - rows of int8 have no groups
        return cls()

    @property
    def bias(self) -> str:
        return "bias"

    @property
    def quantizer(self) -> Quantizer:
        return Quantizer(self.bits)

    @property
    def codec(self) -> Codec:
        """How Q is stored."""
        return INT8

    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:  # noqa: ARG002
        return (StoredMatrix(BASE, shape, codec=self.codec),)

    def parameters(self, shape: tuple[int, ...], rank: int) -> int:  # noqa: ARG002 - there are no factors
        """Return the number of elements that stand for the weight; scales are not counted."""
        return math.prod(shape)


@dataclass(frozen=True)
class Packed(Quantized):
    """The same with few bits, and scales for groups of `group` neighbours in a row."""

    group: int = 64

    @classmethod
    def of(cls, options: FormOptions) -> Self:
        return cls(group=options.group)

    @property
    def quantizer(self) -> Quantizer:
        return Quantizer(self.bits, self.group)

    @property
    def codec(self) -> Codec:
        return PackedCodec(f"int{self.bits}", "I32", bits=self.bits, group=self.group)

    def takes_width(self, columns: int) -> bool:
        return columns % self.group == 0


class Corrected(Quantized):
    """W ≈ Q + L·R: `0.weight` is R [k, n], `1.weight` is L [m, k]; a part of the forms with factors."""

    has_ranks: ClassVar[bool] = True

    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:
        outputs, inputs = shape
        factors = (StoredMatrix("0.weight", (rank, inputs)), StoredMatrix("1.weight", (outputs, rank)))
        return (*super().stored_matrices(shape, rank), *factors)

    def parameters(self, shape: tuple[int, ...], rank: int) -> int:
        return super().parameters(shape, rank) + rank * sum(shape)

    def ratio_rank(self, shape: tuple[int, ...], ratio: float) -> int:
        """Return the largest rank whose factors have at most this share of the weight's parameters, or 0."""
        most = math.floor(Fraction(repr(ratio)) * math.prod(shape))
        return min(*shape, most // sum(shape)) if min(shape) else 0


@register
@dataclass(frozen=True)
class Int8(Quantized):
    """One scale for each row."""

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8


@register
@dataclass(frozen=True)
class Int4(Packed):
    """Four bits, one scale for each group."""

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4


@register
@dataclass(frozen=True)
class Int3(Packed):
    """Three bits, one scale for each group."""

    name: ClassVar[str] = "int3"
    bits: ClassVar[int] = 3


@register
@dataclass(frozen=True)
class Int8Svd(Corrected, Int8):
    """Eight bits, and the best correction of what rounding loses."""

    name: ClassVar[str] = "int8+svd"


@register
@dataclass(frozen=True)
class Int4Svd(Corrected, Int4):
    """Four bits, and the best correction of what rounding loses."""

    name: ClassVar[str] = "int4+svd"


@register
@dataclass(frozen=True)
class Int3Svd(Corrected, Int3):
    """Three bits, and the best correction of what rounding loses."""

    name: ClassVar[str] = "int3+svd"
