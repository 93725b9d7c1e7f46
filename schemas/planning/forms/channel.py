"""The form `channel`: few filters of the whole kernel, then a convolution of one element that mixes them."""

import math
from dataclasses import dataclass
from typing import ClassVar

from schemas.planning.forms.base import StoredMatrix
from schemas.planning.forms.kernel import KernelForm, ones, register_kernel


@register_kernel
@dataclass(frozen=True)
class Channel(KernelForm):
    """`0.weight` [k, i, *kernel] and `1.weight` [o, k, 1, …]: the `svd` of the matrix [o, i·kernel]."""

    name: ClassVar[str] = "channel"
    takes_statistics: ClassVar[bool] = True

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0], math.prod(shape[1:])

    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:
        outputs, inputs, *kernel = shape
        return (
            StoredMatrix("0.weight", (rank, inputs, *kernel)),
            StoredMatrix("1.weight", (outputs, rank, *ones(tuple(kernel)))),
        )

    def parameters(self, shape: tuple[int, ...], rank: int) -> int:
        return rank * sum(self.matrix_shape(shape))
