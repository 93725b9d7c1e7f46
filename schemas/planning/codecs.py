"""The table of codecs: each says how one matrix is stored."""

from dataclasses import dataclass

from schemas.format.header import NewTensor

KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Codec:
    """A matrix stored as one tensor of a floating dtype; `name` is its name in a spec."""

    name: str
    dtype: str

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[NewTensor, ...]:
        """Return the stored tensors of a matrix with this name and shape."""
        return (NewTensor(name, self.dtype, shape),)


CODECS = {
    codec.name: codec
    for codec in (
        Codec("float64", "F64"),
        Codec("float32", "F32"),
        Codec("float16", "F16"),
        Codec("bfloat16", "BF16"),
    )
}
# The values of a spec's `dtype`. Float64 is not among them: only a weight that is float64 already keeps it.
CODEC_NAMES = (KEEP, "float32", "float16", "bfloat16")


def codec_for(choice: str, dtype: str) -> Codec:
    """Return the codec for a weight of this dtype; `choice` is the spec's `dtype`."""
    if choice != KEEP:
        return CODECS[choice]
    return next(codec for codec in CODECS.values() if codec.dtype == dtype)
