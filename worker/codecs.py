"""The codecs at work: a matrix in, the stored tensors out, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from schemas.planning.codecs import CODECS, Codec
from worker.checkpoint.reader import torch_dtype


class TensorCodec(Protocol):
    """How one matrix is stored; the counterpart of `schemas.planning.codecs.Codec`."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which matrices are to be computed."""

    @property
    def is_exact(self) -> bool:
        """Whether a matrix of `dtype` is stored without a further error."""

    def encode(self, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the stored tensors, as the codec's `tensors` names them."""

    def decode(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the matrix that stored tensors stand for."""


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


TENSOR_CODECS: dict[Codec, TensorCodec] = {
    codec: FloatCodec(torch_dtype(codec.dtype)) for codec in CODECS.values()
}
