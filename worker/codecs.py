"""The implementations of the codecs: encode a matrix to the stored tensors, and decode it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


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


# By the codec's name. A test compares the names with those of `schemas.planning.codecs`.
CODEC_IMPLEMENTATIONS: dict[str, CodecImplementation] = {
    "float64": FloatImplementation(torch.float64),
    "float32": FloatImplementation(torch.float32),
    "float16": FloatImplementation(torch.float16),
    "bfloat16": FloatImplementation(torch.bfloat16),
}
