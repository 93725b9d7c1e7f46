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

from eckart.torch.product import Product, product

if TYPE_CHECKING:
    from collections.abc import Sequence

# What every module has, and of that what says which parts it has.
MODULE_STATE = frozenset(vars(nn.Module()))
CONTENTS = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
COMPILED = "_compiled_call_impl"
# A layer is tried out on this many inputs, with this many outputs.
TRIAL_ROWS, TRIAL_INPUTS, TRIAL_OUTPUTS = 64, 3, 2


class LowRank(nn.Sequential):
    """Factors, input side first; the last one has the bias of the whole."""

    # Which form of compression made the factors, where that is known.
    method: str | None = None
    # Whether the weight is stored [inputs, outputs].
    transposed: ClassVar[bool] = False
    # The attributes for the numbers of inputs and outputs.
    size_names: ClassVar[tuple[str, str]]

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

    size_names = ("in_features", "out_features")
    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "bias", "sizes", *size_names]

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
    size_names = ("nx", "nf")
    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "bias", "sizes", *size_names]

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


def obstacle(layer: nn.Module, *, transposed: bool) -> str | None:
    """Say why factors cannot run in a layer's place; None where they can.

    They can where the layer has nothing but a weight and perhaps a bias, and computes x·Wᵀ + b, or x·W + b
    for a transposed weight. A class other than nn.Linear is tried out on a small copy.
    """
    if isinstance(layer, LowRank):
        return "holds factors already"
    weight, bias = (vars(layer)["_parameters"].get(name) for name in ("weight", "bias"))
    if type(weight) is not nn.Parameter or weight.dim() != 2 or not weight.is_floating_point():
        return "is no linear layer"
    own = {id(value) for value in (weight, bias) if value is not None}
    if {id(value) for value in (*layer.parameters(), *layer.buffers())} != own or any(layer.children()):
        return "has more than a weight and a bias"
    if "forward" in vars(layer) or any(getattr(layer, hooks) for hooks in STATE_HOOKS):
        return "has been changed: its forward, or how it is saved and loaded"
    if _computes(layer, transposed=transposed) is not None:
        return None
    other_way = _computes(layer, transposed=not transposed) is not None
    return "stores its weight the other way round" if other_way else "is no linear layer"


def become_low_rank(
    layer: nn.Module, sizes: Sequence[int], *, transposed: bool, method: str | None
) -> LowRank:
    """Turn a layer without obstacles, itself, into empty factors of these sizes, and return it.

    The object stays the same, so that all who hold it see the factors. So do its bias, its hooks, its mode
    and its attributes; the factors have its weight's device, dtype and `requires_grad`.
    """
    old = layer.weight
    assert isinstance(old, Tensor)
    needs_bias = _computes(layer, transposed=transposed) == "biased"
    parts = []
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        weight = nn.Parameter(torch.empty(shape, dtype=old.dtype, device=old.device), old.requires_grad)
        is_last = number == len(sizes) - 2
        parts.append(_part(layer, weight, layer.bias if is_last else None, transposed=transposed))
        if needs_bias and not is_last:
            _add_zero_bias(parts[-1], outputs, old)
    kind = LowRankConv1D if transposed else LowRankLinear
    chain = kind(*parts)
    kept = {
        name: value for name, value in vars(layer).items() if name not in CONTENTS and not hasattr(kind, name)
    }
    vars(chain).update(kept)
    chain.method = method
    layer.__class__, layer.__dict__ = kind, vars(chain)
    assert isinstance(layer, LowRank)
    return layer


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes as nn.Linear does, whatever else its class has."""
    kind = type(layer)
    return kind.forward is nn.Linear.forward and kind.__call__ is nn.Module.__call__


def _part(layer: nn.Module, weight: nn.Parameter, bias: Any, *, transposed: bool) -> nn.Module:
    """Make a module of a layer's class with another weight and bias, without its hooks."""
    part: nn.Module = type(layer).__new__(type(layer))
    nn.Module.__init__(part)
    if not _is_plain(layer):
        own = {name: value for name, value in vars(layer).items() if name not in MODULE_STATE}
        own.pop(COMPILED, None)
        vars(part).update(own)
    kind = LowRankConv1D if transposed else LowRankLinear
    inputs, outputs = weight.shape if transposed else weight.shape[::-1]
    vars(part).update(dict(zip(kind.size_names, (inputs, outputs), strict=True)))
    part.register_parameter("weight", weight)
    part.register_parameter("bias", bias)
    return part.train(layer.training)


def _add_zero_bias(part: nn.Module, outputs: int, like: Tensor) -> None:
    """Give a part a bias that its class needs, outside of the state dict."""
    del part.bias
    zeros = torch.zeros(outputs, dtype=like.dtype, device=like.device)
    part.register_buffer("bias", zeros, persistent=False)


def _computes(layer: nn.Module, *, transposed: bool) -> str | None:
    """Find out whether a layer's class computes a linear map.

    Return `plain` where it does so with and without a bias, `biased` where it does so only with one, and None
    where it does not.
    """
    if _is_plain(layer):
        return None if transposed else "plain"
    generator = torch.Generator().manual_seed(0)
    sizes = (2 * TRIAL_ROWS * TRIAL_INPUTS, TRIAL_OUTPUTS * TRIAL_INPUTS, TRIAL_OUTPUTS)
    drawn = [torch.randn(n, generator=generator, dtype=torch.float32, device="cpu") for n in sizes]
    x, weight, bias = drawn[0].view(2, TRIAL_ROWS, -1), drawn[1].view(TRIAL_OUTPUTS, -1), drawn[2]
    own = nn.Parameter(weight.mT.contiguous() if transposed else weight)
    with_bias = _part(layer, own, nn.Parameter(bias), transposed=transposed)
    if not _gives(with_bias, x, x @ weight.mT + bias):
        return None
    without = _part(layer, own, None, transposed=transposed)
    return "plain" if _gives(without, x, x @ weight.mT) else "biased"


def _gives(part: nn.Module, x: Tensor, wanted: Tensor) -> bool:
    """Whether a module computes this in both modes, of two dimensions and, if it takes them, of three."""
    return all(
        _call_gives(part.train(mode), x[0], wanted[0]) is True and _call_gives(part, x, wanted) is not False
        for mode in (False, True)
    )


def _call_gives(part: nn.Module, x: Tensor, wanted: Tensor) -> bool | None:
    """Whether a call returns this; None where it fails, as a foreign class may in any way."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        try:
            found = part(x)
        except Exception:  # noqa: BLE001 - see above
            return None
    return (
        isinstance(found, Tensor)
        and found.shape == wanted.shape
        and found.dtype == wanted.dtype
        and torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    )
