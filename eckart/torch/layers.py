"""Layers that run a weight as it is stored, and have what the layer has in whose place they stand.

Code that reads a layer, such as `nn.TransformerEncoder`, `nn.MultiheadAttention` and T5, finds its weight,
its bias and its sizes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from eckart.torch.forms import INT8, Factors, Form
from eckart.torch.matrices import SCALE, int8_value
from eckart.torch.parts import SIZE_NAMES
from eckart.torch.product import product, when_used

UNUSED = ["weight", "bias", "sizes", "form"]


class Compressed(nn.Sequential):
    """A layer whose weight is not stored dense; its parts are factors."""

    # Which form of compression made it, where that is known.
    method: str | None = None
    # Whether the weight is stored [inputs, outputs].
    transposed: ClassVar[bool] = False
    # A part of the layer's class before, so that it can be turned into another form: alone in a tuple, which
    # torch does not take for a submodule.
    origin: tuple[nn.Module, ...] = ()
    _form: Form

    @property
    def form(self) -> Form:
        """How the weight is stored."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weight that the tensors stand for; computed where it is used."""
        raise NotImplementedError

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of inputs, ranks, and the number of outputs."""
        shape = self.form.shape
        return shape if self.transposed else shape[::-1]

    def is_intact(self) -> bool:
        """Whether it holds what its form says and perhaps a bias, and nothing else: no adapters, say."""
        state = self.state_dict(keep_vars=True)
        state.pop(self.form.bias, None)
        trained = self.form.trained
        return state.keys() == self.form.tensors.keys() and all(
            isinstance(value, nn.Parameter if name in trained else Tensor) for name, value in state.items()
        )


class LinearSizes:
    """What a Linear calls its sizes."""

    sizes: tuple[int, ...]

    @property
    def in_features(self) -> int:
        """The number of inputs."""
        return self.sizes[0]

    @property
    def out_features(self) -> int:
        """The number of outputs."""
        return self.sizes[-1]


class Conv1DSizes:
    """What GPT-2's Conv1D calls its sizes."""

    sizes: tuple[int, ...]

    @property
    def nx(self) -> int:
        """The number of inputs."""
        return self.sizes[0]

    @property
    def nf(self) -> int:
        """The number of outputs."""
        return self.sizes[-1]


class LowRank(Compressed):
    """Factors, input side first; the last one has the bias of the whole."""

    @property
    def form(self) -> Factors:
        """The factors' sizes, and how they are stored."""
        codec = INT8 if any(isinstance(part, Int8Factor) for part in self) else None
        return Factors(self.transposed, self.sizes, codec)

    @property
    def weight(self) -> Tensor:
        """The product of the factors, differentiable, in their dtype; multiplied where it is used."""
        factors = [matrix_of(part) for part in self]
        shape = self.form.shape
        return when_used(lambda: product(factors, transposed=self.transposed), shape, factors[0])

    @property
    def bias(self) -> Tensor | None:
        """The bias of the last factor."""
        bias: Any = self[-1].bias
        found: Tensor | None = bias() if callable(bias) else bias
        return found

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of inputs of each factor, and the number of outputs."""
        shapes = [tuple(matrix_of(part).shape) for part in self]
        turned = shapes if self.transposed else [shape[::-1] for shape in shapes]
        return (*(inputs for inputs, _ in turned), turned[-1][1])

    def is_intact(self) -> bool:
        """Ask the same of parts that may have anything for a weight."""
        parts = [part for part in self if not isinstance(part, Int8Factor)]
        plain = all("weight" in dict(part.named_parameters(recurse=False)) for part in parts)
        return plain and super().is_intact()


class LowRankLinear(LinearSizes, LowRank):
    """Two or three Linears that multiply to the weight of one."""

    __jit_unused_properties__: ClassVar[list[str]] = [*UNUSED, *SIZE_NAMES[False]]


class LowRankConv1D(Conv1DSizes, LowRank):
    """The same for layers that store their weight [inputs, outputs], as GPT-2's Conv1D does."""

    transposed = True
    __jit_unused_properties__: ClassVar[list[str]] = [*UNUSED, *SIZE_NAMES[True]]


class Int8Factor(nn.Module):
    """A factor of eight bits per element, and a scale for each row; it is not trained.

    The integers are called `weight` in the state, and the attribute is the matrix that they stand for.
    """

    bias: nn.Parameter | None

    __jit_unused_properties__: ClassVar[list[str]] = ["weight"]

    def __init__(
        self, shape: tuple[int, int], bias: nn.Parameter | None, like: Tensor, *, transposed: bool
    ) -> None:
        super().__init__()
        self.transposed = transposed
        add_tensor(self, "weight", torch.zeros(shape, dtype=torch.int8, device=like.device))
        scale = torch.zeros(shape[0], 1, dtype=like.dtype, device=like.device)
        self.register_buffer("weight" + SCALE, scale)
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """The matrix; computed where it is used."""
        integers, scale = self._buffers["weight"], self._buffers["weight" + SCALE]
        assert integers is not None
        assert scale is not None
        return when_used(lambda: int8_value(integers, scale), integers.shape, scale)

    def forward(self, x: Tensor) -> Tensor:
        return apply_linear(x, self.weight, self.bias, transposed=self.transposed)


def apply_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool = False) -> Tensor:
    """Compute x·Wᵀ + b, or x·W + b, in the dtype of x: classes that cast their weight find no other here."""
    matrix = (weight.mT if transposed else weight).to(x.dtype)
    return functional.linear(x, matrix, None if bias is None else bias.to(x.dtype))


def add_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a module a buffer under a name that its class has a property for."""
    module._buffers[name] = tensor  # noqa: SLF001 - register_buffer refuses the name


def matrix_of(part: nn.Module) -> Tensor:
    """Return a factor; the weight of a dynamically quantized Linear is a method."""
    weight: Any = part.weight
    matrix: Tensor = weight().dequantize() if callable(weight) else weight
    return matrix
