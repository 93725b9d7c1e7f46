"""The form `tucker2`: fewer channels before and after a smaller kernel."""

import math
from dataclasses import dataclass
from typing import ClassVar

from schemas.planning.forms.base import StoredMatrix
from schemas.planning.forms.kernel import KernelForm, ones, register_kernel


@register_kernel
@dataclass(frozen=True)
class Tucker2(KernelForm):
    """`0.weight` [r, i, 1, …], `1.weight` [s, r, *kernel] and `2.weight` [o, s, 1, …].

    The rank k is that of the side with more channels; the other has the same share of its own, rounded up.
    """

    name: ClassVar[str] = "tucker2"
    num_factors: ClassVar[int] = 3
    known_by_spectrum: ClassVar[bool] = False
    has_decomposition: ClassVar[bool] = False
    unfolding: ClassVar[str] = "tucker2"

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        most = max(shape[:2])
        return most, most

    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:
        outputs, inputs, *kernel = shape
        few_outputs, few_inputs = channel_ranks(shape, rank)
        return (
            StoredMatrix("0.weight", (few_inputs, inputs, *ones(tuple(kernel)))),
            StoredMatrix("1.weight", (few_outputs, few_inputs, *kernel)),
            StoredMatrix("2.weight", (outputs, few_outputs, *ones(tuple(kernel)))),
        )


def channel_ranks(shape: tuple[int, ...], rank: int) -> tuple[int, int]:
    """Return how many outputs and inputs the smaller kernel has, no more than the other side can tell."""
    outputs, inputs, *kernel = shape
    most, elements = max(outputs, inputs), math.prod(kernel)
    few_outputs, few_inputs = (-(-rank * side // most) for side in (outputs, inputs))
    few_outputs = min(few_outputs, few_inputs * elements)
    return few_outputs, min(few_inputs, few_outputs * elements)
