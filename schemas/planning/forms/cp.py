"""The form `cp`: a mix of the inputs, one filter for each channel in between, and a mix of these."""

import math
from dataclasses import dataclass
from typing import ClassVar

from schemas.planning.forms.base import StoredMatrix
from schemas.planning.forms.kernel import KernelForm, ones, register_kernel


@register_kernel
@dataclass(frozen=True)
class CP(KernelForm):
    """`0.weight` [k, i, 1, …], `1.weight` [k, 1, *kernel] in k groups, and `2.weight` [o, k, 1, …]."""

    name: ClassVar[str] = "cp"
    num_factors: ClassVar[int] = 3
    takes_transposed: ClassVar[bool] = False
    known_by_spectrum: ClassVar[bool] = False
    has_decomposition: ClassVar[bool] = False
    unfolding: ClassVar[str] = "cp"

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        # So many terms are the sum of the decompositions of all slices, which has no error.
        outputs, inputs, *kernel = shape
        elements = math.prod(kernel)
        return (full := min(outputs * inputs, outputs * elements, inputs * elements)), full

    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:
        outputs, inputs, *kernel = shape
        return (
            StoredMatrix("0.weight", (rank, inputs, *ones(tuple(kernel)))),
            StoredMatrix("1.weight", (rank, 1, *kernel)),
            StoredMatrix("2.weight", (outputs, rank, *ones(tuple(kernel)))),
        )

    def parameters(self, shape: tuple[int, ...], rank: int) -> int:
        return rank * (shape[0] + shape[1] + math.prod(shape[2:]))
