"""Layers whose weight is integers with scales, perhaps corrected by factors; dequantized as they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from eckart.torch.forms import WEIGHT, Quantized
from eckart.torch.layers import (
    UNUSED,
    Compressed,
    Conv1DSizes,
    LinearSizes,
    add_tensor,
    apply_linear,
    matrix_of,
)
from eckart.torch.matrices import INTEGERS, SCALE
from eckart.torch.parts import SIZE_NAMES
from eckart.torch.product import product, when_used

if TYPE_CHECKING:
    from collections.abc import Iterable


class QuantizedLayer(Compressed):
    """Integers and scales, which are buffers and are not trained, and perhaps two factors as parts.

    The names of the integers in the state are those in the file; where that is `weight`, the attribute is
    still the weight that they stand for.
    """

    bias: nn.Parameter | None
    _form: Quantized

    def __init__(
        self, form: Quantized, parts: Iterable[nn.Module], bias: nn.Parameter | None, like: Tensor
    ) -> None:
        super().__init__(*parts)
        self._form = form
        for name, kind in form.matrix.tensors(WEIGHT).items():
            dtype = INTEGERS.get(kind.dtypes[0], like.dtype)
            add_tensor(self, name, torch.zeros(kind.shape, dtype=dtype, device=like.device))
        self.register_parameter("bias", bias)

    @property
    def form(self) -> Quantized:
        """The integers' layout, and the factors."""
        return self._form

    @property
    def weight(self) -> Tensor:
        """The sum of what the integers stand for and the factors' product; computed where it is used."""
        scale = self._buffers[WEIGHT + SCALE]
        assert scale is not None
        return when_used(self._weight, self.form.shape, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the integers and the factors side by side."""
        y = apply_linear(x, self._dequantized(), self.bias)
        if not len(self):
            return y
        for part in self:
            x = part(x)
        return y + x

    def _dequantized(self) -> Tensor:
        """Return the matrix [outputs, inputs] of the integers."""
        stored = {name: tensor for name, tensor in self._buffers.items() if tensor is not None}
        return self.form.matrix.value(stored, WEIGHT)

    def _weight(self) -> Tensor:
        matrix = self._dequantized()
        weight = matrix.mT if self.transposed else matrix
        if not len(self):
            return weight
        return weight + product([matrix_of(part) for part in self], transposed=self.transposed)


class QuantizedLinear(LinearSizes, QuantizedLayer):
    """In place of a Linear."""

    __jit_unused_properties__: ClassVar[list[str]] = [*UNUSED, *SIZE_NAMES[False]]


class QuantizedConv1D(Conv1DSizes, QuantizedLayer):
    """In place of a layer that stores its weight [inputs, outputs]; the integers are [outputs, inputs]."""

    transposed = True
    __jit_unused_properties__: ClassVar[list[str]] = [*UNUSED, *SIZE_NAMES[True]]
