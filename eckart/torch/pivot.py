"""Layers that compute some of their outputs, and the others from these."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from eckart.torch.forms import ROWS, Pivot, factor_name, places_of
from eckart.torch.layers import UNUSED, Compressed, Conv1DSizes, LinearSizes, matrix_of
from eckart.torch.parts import SIZE_NAMES
from eckart.torch.product import when_used

if TYPE_CHECKING:
    from collections.abc import Iterable


class PivotLayer(Compressed):
    """Two parts: the map to the pivot rows' outputs, and that from these to the other outputs."""

    rows: Tensor
    bias: nn.Parameter | None
    _form: Pivot

    def __init__(
        self, form: Pivot, parts: Iterable[nn.Module], bias: nn.Parameter | None, like: Tensor
    ) -> None:
        super().__init__(*parts)
        self._form = form
        rows = torch.arange(form.rank, dtype=torch.int32, device=like.device)
        self.register_buffer(ROWS, rows)
        self.register_parameter("bias", bias)

    @property
    def form(self) -> Pivot:
        """The sizes, and how the matrices are stored."""
        return self._form

    @property
    def weight(self) -> Tensor:
        """All rows of the weight, differentiable; computed where it is used."""
        return when_used(self._weight, self.form.shape, matrix_of(self[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs of the pivot rows, then the others, and put each in its place."""
        chosen = self[0](x)
        y = torch.cat((chosen, self[1](chosen)), -1)
        y = y.index_select(-1, places_of(self.rows, self.form.sizes[2]))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _weight(self) -> Tensor:
        parts = {factor_name(number): matrix_of(part) for number, part in enumerate(self)}
        plain = Pivot(self.transposed, self.form.sizes)
        return plain.weight({**parts, ROWS: self.rows})


class PivotLinear(LinearSizes, PivotLayer):
    """In place of a Linear."""

    __jit_unused_properties__: ClassVar[list[str]] = [*UNUSED, *SIZE_NAMES[False]]


class PivotConv1D(Conv1DSizes, PivotLayer):
    """In place of a layer that stores its weight [inputs, outputs]."""

    transposed = True
    __jit_unused_properties__: ClassVar[list[str]] = [*UNUSED, *SIZE_NAMES[True]]
