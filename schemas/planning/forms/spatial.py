"""The form `spatial`: a convolution down the kernel's first side, then one along its second."""

from dataclasses import dataclass
from typing import ClassVar

from schemas.planning.forms.base import StoredMatrix
from schemas.planning.forms.kernel import KernelForm, register_kernel


@register_kernel
@dataclass(frozen=True)
class Spatial(KernelForm):
    """`0.weight` [k, i, h, 1] and `1.weight` [o, k, 1, w]: the SVD of the kernel rearranged to [o·w, i·h]."""

    name: ClassVar[str] = "spatial"
    unfolding: ClassVar[str] = "spatial"

    def takes_kernel(self, kernel: tuple[int, ...]) -> bool:
        return len(kernel) == 2

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        # Kernels of other sides stay dense, but the planner asks of them too.
        outputs, inputs, height, *width = shape
        return outputs * (width[0] if width else 1), inputs * height

    def stored_matrices(self, shape: tuple[int, ...], rank: int) -> tuple[StoredMatrix, ...]:
        outputs, inputs, height, *width = shape
        return (
            StoredMatrix("0.weight", (rank, inputs, height, 1)),
            StoredMatrix("1.weight", (outputs, rank, 1, width[0] if width else 1)),
        )

    def parameters(self, shape: tuple[int, ...], rank: int) -> int:
        return rank * sum(self.matrix_shape(shape))
