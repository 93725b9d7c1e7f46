"""The codecs: each says which tensors store one matrix."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

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

    name: str
    dtype: str

    @abstractmethod
    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[NewTensor, ...]:
        """Return the stored tensors of a matrix with this name and shape."""


@dataclass(frozen=True, slots=True)
class FloatCodec(Codec):
    """A matrix as one tensor of a floating dtype, which any reader understands."""

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[NewTensor, ...]:
        return (NewTensor(name, self.dtype, shape),)


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
CODECS: dict[str, Codec] = {codec.name: codec for codec in FLOAT_CODECS.values() if codec.name != "float64"}


def codec_for(choice: str, dtype: str) -> Codec:
    """Return the codec for a weight of this dtype; `choice` is the spec's `dtype`."""
    return FLOAT_CODECS[dtype] if choice == KEEP else CODECS[choice]
