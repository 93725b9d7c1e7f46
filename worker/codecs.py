"""The implementation of the codecs: encode a matrix to the stored tensors, and decode it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from schemas.planning.codecs import CODECS, Codec
from worker.checkpoint.reader import torch_dtype


class CodecImplementation(Protocol):
    """Encodes and decodes one matrix; the implementation of a `schemas.planning.codecs.Codec`."""

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
class FloatCodec:
    """One tensor of a floating dtype."""

    dtype: torch.dtype
    is_exact: bool = True

    def encode(self, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (matrix.to(self.dtype),)

    def decode(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        (matrix,) = tensors
        return matrix


CODEC_IMPLEMENTATIONS: dict[Codec, CodecImplementation] = {
    codec: FloatCodec(torch_dtype(codec.dtype)) for codec in CODECS.values()
}
