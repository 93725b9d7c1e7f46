"""The codecs: how one matrix is stored."""

from dataclasses import dataclass

from schemas.format.header import TensorSpec

KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Codec:
    """A matrix stored as one tensor of a floating dtype; `name` is what a spec calls it."""

    name: str
    dtype: str

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[TensorSpec, ...]:
        """Return the tensors that hold a matrix of this name and shape."""
        return (TensorSpec(name, self.dtype, shape),)


CODECS = {
    codec.name: codec
    for codec in (
        Codec("float64", "F64"),
        Codec("float32", "F32"),
        Codec("float16", "F16"),
        Codec("bfloat16", "BF16"),
    )
}
# Those that a spec's `dtype` can name. Only a weight that is float64 already is stored so.
CODEC_NAMES = (KEEP, "float32", "float16", "bfloat16")


def codec_for(choice: str, dtype: str) -> Codec:
    """Return the codec that a spec chooses for a weight of this dtype."""
    if choice != KEEP:
        return CODECS[choice]
    return next(codec for codec in CODECS.values() if codec.dtype == dtype)
