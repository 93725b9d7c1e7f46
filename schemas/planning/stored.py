"""What replaces a weight at a rank: the tensors, their bytes, and the ranks that save something.

It follows from few values, the same for many layers: a checkpoint has thousands of layers of few kinds, and a
budget asks for each again and again.
"""

from bisect import bisect_left
from functools import lru_cache
from math import prod
from typing import NamedTuple

from schemas.format.encodings.base import Part
from schemas.format.header import NewTensor
from schemas.planning.codecs import Codec
from schemas.planning.forms import FORMS, Form, FormOptions, StoredMatrix

# Of the scale of a pair, which holds any ratio of ranks.
SCALE_DTYPE = "F32"
ADAPTER_FACTORS = {"0.weight": "lora_A.weight", "1.weight": "lora_B.weight"}
# The yardstick of ranks that save: no chain saves parameters at higher ranks than two factors do.
TWO_FACTORS = FORMS["svd"].of(FormOptions())


class StoredKind(NamedTuple):
    """All that the number and the bytes of a layer's stored tensors depend on, but for their names."""

    form: Form
    codec: Codec
    dtype: str
    rows: int
    columns: int
    dense_layout: bool
    transposed: bool
    in_adapter: bool
    kernel: tuple[int, ...] = ()
    encoded_bytes: int | None = None
    # The tensors of a pair of an adapter, whose product the weight is.
    lora: tuple[Part, ...] = ()

    @property
    def map_shape(self) -> tuple[int, ...]:
        """The weight as a map: [outputs, inputs], with the sides of a convolution's kernel after them."""
        return map_shape(self.rows, self.columns, self.kernel)


def map_shape(rows: int, columns: int, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return [outputs, inputs] and the kernel of a weight, by the sides of its matrix."""
    return (rows, columns // prod(kernel), *kernel) if kernel else (rows, columns)


def turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape with its first two sides exchanged."""
    return (*shape[1::-1], *shape[2:])


@lru_cache(maxsize=4096)
def break_even_rank(form: Form, shape: tuple[int, ...]) -> int:
    """Return the largest rank that saves a parameter, or 0."""
    return form.break_even_rank(shape)


@lru_cache(maxsize=4096)
def parameter_ranks(form: Form, shape: tuple[int, ...], align: int, least: int) -> range:
    """Return the multiples of `align`, from `least` up, that save a parameter."""
    return form.ranks(shape, align=align, least=least)


def matrices(kind: StoredKind, rank: int) -> tuple[StoredMatrix, ...]:
    """Return what replaces the weight at a rank: the matrices of its form, or their product."""
    if kind.dense_layout:
        return (StoredMatrix("weight", kind.map_shape),)
    return kind.form.stored_matrices(kind.map_shape, rank)


@lru_cache(maxsize=4096)
def byte_ranks(kind: StoredKind) -> range:
    """Return the ranks at which what is stored takes fewer bytes than the weight."""
    shape = (kind.rows, kind.columns)
    dense = NewTensor("", kind.dtype, shape).nbytes
    before = dense if kind.encoded_bytes is None else kind.encoded_bytes
    # At higher ranks the factors alone have as many elements as the weight.
    ranks = range(1, TWO_FACTORS.break_even_rank(shape) + 1) if kind.form.has_ranks else range(1)
    return ranks[: bisect_left(ranks, before, key=lambda rank: nbytes(kind, rank))]


def multiples(ranks: range, align: int, least: int) -> range:
    """Return the multiples of `align` from `least` up; a rank of 0 says that there is none to choose."""
    if 0 in ranks:
        return ranks
    return range(-(-least // align) * align, ranks.stop, align)


# A list of forms asks for every rank of each.
@lru_cache(maxsize=1 << 16)
def nbytes(kind: StoredKind, rank: int) -> int:
    """Return the bytes of all tensors at a rank."""
    return sum(NewTensor("", dtype, shape).nbytes for _, dtype, shape in tensors(kind, rank))


@lru_cache(maxsize=4096)
def tensors(kind: StoredKind, rank: int) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Return what follows the module's name in each stored tensor's, with its dtype and shape."""
    if kind.lora:
        return _lora(kind, rank)
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for matrix in matrices(kind, rank):
        # In an adapter the names are PEFT's, and the factors of a transposed weight are not transposed.
        below = f".{ADAPTER_FACTORS[matrix.name] if kind.in_adapter else matrix.name}"
        is_turned = kind.transposed and not kind.in_adapter and matrix.codec is None
        stored = turned(matrix.shape) if is_turned else matrix.shape
        codec = kind.codec if matrix.codec is None else matrix.codec.for_weight(kind.dtype)
        one = (NewTensor(below, matrix.dtype, stored),) if matrix.dtype is not None else ()
        found += [(t.name, t.dtype, t.shape) for t in one or codec.tensors(below, stored)]
    return tuple(found)


def _lora(kind: StoredKind, rank: int) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Return the tensors of a pair under their own names, and the scale if it has one."""
    down, up, *scale = kind.lora
    return (
        (f".{down.last}", kind.codec.dtype, (rank, *down.shape[1:])),
        (f".{up.last}", kind.codec.dtype, (up.shape[0], rank, *up.shape[2:])),
        *((f".{part.last}", SCALE_DTYPE, part.shape) for part in scale),
    )
