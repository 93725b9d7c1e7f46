"""The codecs: each says which tensors store one matrix."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from schemas.format.header import NewTensor

KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Codec(ABC):
    """One way to store a matrix; a frozen value, so that plans can be compared.

    Attributes
    ----------
    name
        The codec's name, which a spec's `dtype` may give.
    dtype
        Dtype of the tensor with the matrix's own name.
    """

    # The expected squared error of rounding a factor, as a share of what it holds.
    rounding: ClassVar[float] = 0.0
    name: str
    dtype: str

    @abstractmethod
    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[NewTensor, ...]:
        """Return the stored tensors of a matrix with this name and shape."""

    def for_weight(self, dtype: str) -> Self:  # noqa: ARG002 - most codecs are the same for all weights
        """Return the codec as it stores matrices in place of a weight of this dtype."""
        return self


@dataclass(frozen=True, slots=True)
class FloatCodec(Codec):
    """A matrix as one tensor of a floating dtype, which any reader understands."""

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[NewTensor, ...]:
        return (NewTensor(name, self.dtype, shape),)


@dataclass(frozen=True, slots=True)
class ScaledCodec(Codec):
    """A matrix of integers with scales, in a layout of compressed-tensors; `scale` is the scales' dtype."""

    scale: str = "F32"

    def for_weight(self, dtype: str) -> Self:
        # Readers of compressed-tensors give the weight the dtype of its scales.
        return replace(self, scale="F32" if dtype == "F64" else dtype)


@dataclass(frozen=True, slots=True)
class Int8Codec(ScaledCodec):
    """Eight bits for each element and one scale for each row: `int-quantized`."""

    # Measured: 4e-5 to 9e-5 for the factors of an SVD, whatever the spectrum.
    rounding: ClassVar[float] = 8e-5

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[NewTensor, ...]:
        return NewTensor(name, self.dtype, shape), NewTensor(f"{name}_scale", self.scale, (shape[0], 1))


@dataclass(frozen=True, slots=True)
class PackedCodec(ScaledCodec):
    """A few bits for each element, packed densely, and one scale for each group of a row: `pack-quantized`.

    Element j of a row begins at bit j·`bits`, counted from the lowest bit of the row's first integer.
    """

    bits: int = 4
    group: int = 64

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[NewTensor, ...]:
        rows, columns = shape
        return (
            NewTensor(f"{name}_packed", self.dtype, (rows, -(-columns * self.bits // BITS_PER_INTEGER))),
            NewTensor(f"{name}_scale", self.scale, (rows, -(-columns // self.group))),
            NewTensor(f"{name}_shape", "I64", (2,)),
        )


BITS_PER_INTEGER = 32
INT8 = Int8Codec("int8", "I8")
# By the dtype of the weight that they keep.
FLOAT_CODECS: dict[str, FloatCodec] = {
    codec.dtype: codec
    for codec in (
        FloatCodec("float64", "F64"),
        FloatCodec("float32", "F32"),
        FloatCodec("float16", "F16"),
        FloatCodec("bfloat16", "BF16"),
    )
}
# The codecs that a spec's `dtype` may name; `keep` takes that of the weight. Float64 is not among them: only
# a weight that is float64 already keeps it.
CODECS: dict[str, Codec] = {
    codec.name: codec for codec in (*FLOAT_CODECS.values(), INT8) if codec.name != "float64"
}


def codec_for(choice: str, dtype: str) -> Codec:
    """Return the codec for a weight of this dtype; `choice` is the spec's `dtype`."""
    return FLOAT_CODECS[dtype] if choice == KEEP else CODECS[choice].for_weight(dtype)
