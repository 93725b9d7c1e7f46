"""Layers of factors that have what the layer has in whose place they stand.

Code that reads a layer, such as `nn.TransformerEncoder`, `nn.MultiheadAttention` and T5, finds its weight,
its bias and its sizes. A new kind of layer, such as a convolution, is one class here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from eckart.torch.parts import SIZE_NAMES, Trials, new_part
from eckart.torch.product import Product, product

if TYPE_CHECKING:
    from collections.abc import Sequence

# What a module has that says which parts it has.
CONTENTS = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
OTHER_WAY = "stores its weight the other way round"


class LowRank(nn.Sequential):
    """Factors, input side first; the last one has the bias of the whole."""

    # Which form of compression made the factors, where that is known.
    method: str | None = None
    # Whether the weight is stored [inputs, outputs].
    transposed: ClassVar[bool] = False

    @property
    def weight(self) -> Tensor:
        """The product of the factors, differentiable, in their dtype; multiplied where it is used."""
        factors = [_matrix(part) for part in self]
        if torch.compiler.is_compiling() or is_tracing():  # type: ignore[no-untyped-call]
            return product(factors, transposed=self.transposed)
        return Product.of(factors, transposed=self.transposed)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the last factor."""
        bias: Any = self[-1].bias
        found: Tensor | None = bias() if callable(bias) else bias
        return found

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of inputs of each factor, and the number of outputs."""
        shapes = [tuple(_matrix(part).shape) for part in self]
        turned = shapes if self.transposed else [shape[::-1] for shape in shapes]
        return (*(inputs for inputs, _ in turned), turned[-1][1])


class LowRankLinear(LowRank):
    """Two or three Linears that multiply to the weight of one."""

    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "bias", "sizes", *SIZE_NAMES[False]]

    @property
    def in_features(self) -> int:
        """The number of inputs."""
        return self.sizes[0]

    @property
    def out_features(self) -> int:
        """The number of outputs."""
        return self.sizes[-1]


class LowRankConv1D(LowRank):
    """The same for layers that store their weight [inputs, outputs], as GPT-2's Conv1D does."""

    transposed = True
    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "bias", "sizes", *SIZE_NAMES[True]]

    @property
    def nx(self) -> int:
        """The number of inputs."""
        return self.sizes[0]

    @property
    def nf(self) -> int:
        """The number of outputs."""
        return self.sizes[-1]


def _matrix(part: nn.Module) -> Tensor:
    """Return a factor; the weight of a dynamically quantized Linear is a method."""
    weight: Any = part.weight
    matrix: Tensor = weight().dequantize() if callable(weight) else weight
    return matrix


def is_intact(layer: LowRank) -> bool:
    """Whether a layer still holds its factors and the last one's bias, and nothing else: no adapters, say."""
    state = layer.state_dict(keep_vars=True)
    state.pop(f"{len(layer) - 1}.bias", None)
    wanted = {f"{i}.weight" for i in range(len(layer))}
    return state.keys() == wanted and all(isinstance(value, nn.Parameter) for value in state.values())


def obstacle(layer: nn.Module, trials: Trials, *, transposed: bool) -> str | None:
    """Say why factors cannot run in a layer's place; None where they can.

    They can where the layer has nothing but a weight and perhaps a bias, and computes x·Wᵀ + b, or x·W + b
    for a transposed weight. A class other than nn.Linear is tried out on a small copy. A layer of factors
    takes others.
    """
    if isinstance(layer, LowRank):
        is_other_way = layer.transposed != transposed
        return (OTHER_WAY if is_other_way else None) if is_intact(layer) else "no longer holds plain factors"
    if why := _unlike_linear(layer):
        return why
    if trials.result(layer, transposed=transposed) is not None:
        return None
    is_other_way = trials.result(layer, transposed=not transposed) is not None
    return OTHER_WAY if is_other_way else "is no linear layer"


def _unlike_linear(layer: nn.Module) -> str | None:
    """Say what a layer holds, or what was done to it, that no plain linear layer has; None without that."""
    weight, bias = (vars(layer)["_parameters"].get(name) for name in ("weight", "bias"))
    if type(weight) is not nn.Parameter or weight.dim() != 2 or not weight.is_floating_point():
        return "is no linear layer"
    own = {id(value) for value in (weight, bias) if value is not None}
    if {id(value) for value in (*layer.parameters(), *layer.buffers())} != own or any(layer.children()):
        return "has more than a weight and a bias"
    if "forward" in vars(layer) or any(getattr(layer, hooks) for hooks in STATE_HOOKS):
        return "has been changed: its forward, or how it is saved and loaded"
    return None


def become_low_rank(
    layer: nn.Module, sizes: Sequence[int], trials: Trials, *, transposed: bool, method: str | None
) -> LowRank:
    """Turn a layer without obstacles, itself, into empty factors of these sizes, and return it.

    The object stays the same, so that all who hold it see the factors. So do its bias, its hooks, its mode
    and its attributes; the factors have its weight's device, dtype and `requires_grad`. Factors of these
    sizes that it holds already stay.
    """
    if isinstance(layer, LowRank) and layer.sizes == tuple(sizes):
        layer.method = method
        return layer
    like = layer[-1] if isinstance(layer, LowRank) else layer
    kind = LowRankConv1D if transposed else LowRankLinear
    chain = kind(*_new_parts(like, sizes, trials, transposed=transposed))
    kept = {
        name: value for name, value in vars(layer).items() if name not in CONTENTS and not hasattr(kind, name)
    }
    vars(chain).update(kept)
    chain.method = method
    layer.__class__, layer.__dict__ = kind, vars(chain)
    assert isinstance(layer, LowRank)
    return layer


def _new_parts(like: nn.Module, sizes: Sequence[int], trials: Trials, *, transposed: bool) -> list[nn.Module]:
    """Make empty factors of a layer's class; the last one has its bias."""
    old: Any = like.weight
    bias: Any = like.bias
    needs_bias = trials.result(like, transposed=transposed) == "biased"
    parts = []
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        weight = nn.Parameter(torch.empty(shape, dtype=old.dtype, device=old.device), old.requires_grad)
        is_last = number == len(sizes) - 2
        parts.append(new_part(like, weight, bias if is_last else None, transposed=transposed))
        if needs_bias and not is_last:
            _add_zero_bias(parts[-1], outputs, old)
    return parts


def _add_zero_bias(part: nn.Module, outputs: int, like: Tensor) -> None:
    """Give a part a bias that its class needs, outside of the state dict."""
    del part.bias
    zeros = torch.zeros(outputs, dtype=like.dtype, device=like.device)
    part.register_buffer("bias", zeros, persistent=False)
