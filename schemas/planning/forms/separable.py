"""The form `separable`: a few filters for each input, and a convolution of one element that mixes them."""

import math
from dataclasses import dataclass
from typing import ClassVar

from schemas.planning.forms.base import StoredMatrix
from schemas.planning.forms.kernel import KernelForm, ones, register_kernel


@register_kernel
@dataclass(frozen=True)
class Separable(KernelForm):
    """`0.weight` [i·k, 1, *kernel] in i groups, and `1.weight` [o, i·k, 1, …]."""

    name: ClassVar[str] = "separable"
    takes_transposed: ClassVar[bool] = False
    has_decomposition: ClassVar[bool] = False
    unfolding: ClassVar[str] = "separable"

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0], math.prod(shape[2:])

    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:
        outputs, inputs, *kernel = shape
        return (
            StoredMatrix("0.weight", (inputs * rank, 1, *kernel)),
            StoredMatrix("1.weight", (outputs, inputs * rank, *ones(tuple(kernel)))),
        )

    def parameters(self, shape: tuple[int, ...], rank: int) -> int:
        return rank * shape[1] * sum(self.matrix_shape(shape))
