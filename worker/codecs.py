"""The implementations of the codecs: encode a matrix to the stored tensors, and decode it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from schemas.planning.codecs import Codec, ScaledCodec
from worker.lowrank import Grid, RoundedMatrix, round_nearest

WORD_BITS = 32
WORD = (1 << WORD_BITS) - 1
SCALE_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CodecImplementation(Protocol):
    """Encodes and decodes one matrix, for one `schemas.planning.codecs.Codec`."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the matrices that `encode` takes and `decode` returns."""

    @property
    def is_exact(self) -> bool:
        """Whether encoding a matrix of `dtype` loses nothing."""

    def encode(self, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the stored tensors, in the order of the codec's `tensors`."""

    def decode(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the matrix that the stored tensors represent."""


@dataclass(frozen=True)
class FloatImplementation:
    """One tensor of a floating dtype."""

    dtype: torch.dtype

    @property
    def is_exact(self) -> bool:
        return True

    def encode(self, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (matrix.to(self.dtype),)

    def decode(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        (matrix,) = tensors
        return matrix


@dataclass(frozen=True)
class Int8Implementation:
    """Integers of eight bits and one scale for each row, as `int-quantized` of compressed-tensors."""

    dtype: torch.dtype = torch.float32
    scale_dtype: torch.dtype = torch.float32

    @property
    def is_exact(self) -> bool:
        return False

    def encode(self, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.pack(round_nearest(matrix, Grid(8, None, self.scale_dtype)))

    def pack(self, rounded: RoundedMatrix) -> tuple[torch.Tensor, ...]:
        """Return the stored tensors of a matrix that is rounded already."""
        return rounded.values, rounded.scale

    def decode(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        values, scale = tensors
        return RoundedMatrix(values, scale).dense()


@dataclass(frozen=True)
class PackedImplementation:
    """Integers of a few bits, packed densely, as `pack-quantized` of compressed-tensors."""

    bits: int

    def pack(self, rounded: RoundedMatrix) -> tuple[torch.Tensor, ...]:
        """Return the stored tensors of a matrix that is rounded already."""
        packed = pack_integers(rounded.values, self.bits)
        return packed, rounded.scale, torch.tensor(rounded.values.shape)

    def decode(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the matrix that the stored tensors represent, in the dtype of the scales."""
        packed, scale, shape = tensors
        return RoundedMatrix(unpack_integers(packed, self.bits, int(shape[1])), scale).dense()


def pack_integers(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack signed integers [m, n] of so many bits into words [m, ⌈n·bits/32⌉] of int32.

    Each is stored with 2^(bits-1) added. That of column j begins at bit j·bits, counted from the lowest bit
    of a row's first word, so it may lie in two words.
    """
    rows, columns = values.shape
    words = -(-columns * bits // WORD_BITS)
    unsigned = values.to(torch.int64) + (1 << (bits - 1))
    position = torch.arange(columns, device=values.device) * bits
    word, shift = position // WORD_BITS, position % WORD_BITS
    # One more word takes what the last one hands on, which is nothing.
    packed = torch.zeros(rows, words + 1, dtype=torch.int64, device=values.device)
    packed.index_add_(1, word, (unsigned << shift) & WORD)
    packed.index_add_(1, word + 1, unsigned >> (WORD_BITS - shift))
    return packed[:, :words].to(torch.int32)


def unpack_integers(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Return the signed integers [m, n] in int8 that :func:`pack_integers` has packed into words."""
    position = torch.arange(columns, device=packed.device) * bits
    word, shift = position // WORD_BITS, position % WORD_BITS
    words = torch.nn.functional.pad(packed.to(torch.int64) & WORD, (0, 1))  # [m, words + 1]
    unsigned = (words[:, word] >> shift) | (words[:, word + 1] << (WORD_BITS - shift))
    return ((unsigned & ((1 << bits) - 1)) - (1 << (bits - 1))).to(torch.int8)


# By the codec's name. A test compares the names with those of `schemas.planning.codecs`.
CODEC_IMPLEMENTATIONS: dict[str, CodecImplementation] = {
    "float64": FloatImplementation(torch.float64),
    "float32": FloatImplementation(torch.float32),
    "float16": FloatImplementation(torch.float16),
    "bfloat16": FloatImplementation(torch.bfloat16),
    "int8": Int8Implementation(),
}
# The codecs of matrices that a form has rounded, by name.
INTEGER_IMPLEMENTATIONS: dict[str, Int8Implementation | PackedImplementation] = {
    "int8": Int8Implementation(),
    "int4": PackedImplementation(4),
    "int3": PackedImplementation(3),
}


def implementation_of(codec: Codec) -> CodecImplementation:
    """Return the implementation of a layer's codec."""
    found = CODEC_IMPLEMENTATIONS[codec.name]
    if isinstance(found, Int8Implementation) and isinstance(codec, ScaledCodec):
        return replace(found, scale_dtype=SCALE_DTYPES[codec.scale])
    return found
