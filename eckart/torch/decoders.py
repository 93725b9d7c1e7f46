"""How the codecs that a file may name are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eckart.torch.forms import INT8
from eckart.torch.matrices import SCALE, int8_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Decoder:
    """How a codec is read: the endings of the names of a matrix's stored tensors, and the way back.

    `shape` and `decode` take the shapes, or the tensors, in the order of the endings, and return the shape of
    the matrix, or the matrix.
    """

    endings: tuple[str, ...]
    shape: Callable[..., tuple[int, ...]]
    decode: Callable[..., Tensor]

    def names(self, matrix: str) -> tuple[str, ...]:
        """Return the names of a matrix's stored tensors."""
        return tuple(matrix + ending for ending in self.endings)


# By the codec's name in the metadata. Where it names none, each matrix is one tensor of a floating dtype. A
# new codec needs one entry here.
DECODERS: dict[str | None, Decoder] = {
    None: Decoder(("",), shape=lambda shape: shape, decode=lambda matrix: matrix),
    INT8: Decoder(("", SCALE), shape=lambda integers, scale: integers, decode=int8_value),  # noqa: ARG005
}
