"""Turning a layer of a model into one that runs its weight as it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eckart.torch.convolutions import TRANSPOSED, LowRankConv, new_convolution, stock_class
from eckart.torch.forms import Factors, Pivot, Quantized
from eckart.torch.kernels import Kernels
from eckart.torch.layers import Compressed, Int8Factor, LowRankConv1D, LowRankLinear
from eckart.torch.matrices import Int8Matrix
from eckart.torch.parts import Trials, new_part
from eckart.torch.pivot import PivotConv1D, PivotLinear
from eckart.torch.quantized import QuantizedConv1D, QuantizedLinear

if TYPE_CHECKING:
    from eckart.torch.forms import Form

# What a module has that says which parts it has, and of which form it is.
CONTENTS = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_form"})
STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
OTHER_WAY = "stores its weight the other way round"
NO_LINEAR, NO_CONVOLUTION = "is no linear layer", "is no plain convolution"


def obstacle_to(layer: nn.Module, form: Form, trials: Trials) -> str | None:
    """Say why a form cannot run in a layer's place; None where it can."""
    if isinstance(form, Kernels):
        return conv_obstacle(layer, transposed=form.transposed)
    return obstacle(layer, trials, transposed=form.transposed)


def obstacle(layer: nn.Module, trials: Trials, *, transposed: bool) -> str | None:
    """Say why a compressed layer cannot run in a layer's place; None where it can.

    It can where the layer has nothing but a weight and perhaps a bias, and computes x·Wᵀ + b, or x·W + b
    for a transposed weight. A class other than nn.Linear is tried out on a small copy. A layer that is
    compressed already takes another form.
    """
    if isinstance(layer, Compressed):
        return _compressed_obstacle(layer, transposed=transposed)
    if why := _unlike_linear(layer):
        return why
    if trials.result(layer, transposed=transposed) is not None:
        return None
    is_other_way = trials.result(layer, transposed=not transposed) is not None
    return OTHER_WAY if is_other_way else NO_LINEAR


def conv_obstacle(layer: nn.Module, *, transposed: bool) -> str | None:
    """Say why smaller convolutions cannot run in a layer's place; None where they can.

    They can where a layer computes as torch's own convolutions do.
    """
    if isinstance(layer, LowRankConv):
        return _compressed_obstacle(layer, transposed=transposed)
    stock = stock_class(layer)
    if stock is None:
        return NO_CONVOLUTION
    if why := _unlike_stock(layer, NO_CONVOLUTION):
        return why
    if transposed != (stock in TRANSPOSED.values()):
        return OTHER_WAY
    return "is a transposed convolution in groups" if transposed and layer.groups != 1 else None


def _compressed_obstacle(layer: Compressed, *, transposed: bool) -> str | None:
    if not layer.is_intact():
        return "no longer holds plain factors"
    return OTHER_WAY if layer.transposed != transposed else None


def _unlike_linear(layer: nn.Module) -> str | None:
    """Say what a layer holds, or what was done to it, that no plain linear layer has; None without that."""
    weight = vars(layer)["_parameters"].get("weight")
    if weight is None or weight.dim() != 2:
        return NO_LINEAR
    return _unlike_stock(layer, NO_LINEAR)


def _unlike_stock(layer: nn.Module, other: str) -> str | None:
    """Say what a layer holds, or what was done to it, that no layer of torch's own has; None without that."""
    weight, bias = (vars(layer)["_parameters"].get(name) for name in ("weight", "bias"))
    if type(weight) is not nn.Parameter or not weight.is_floating_point():
        return other
    own = {id(value) for value in (weight, bias) if value is not None}
    if {id(value) for value in (*layer.parameters(), *layer.buffers())} != own or any(layer.children()):
        return "has more than a weight and a bias"
    if "forward" in vars(layer) or any(getattr(layer, hooks) for hooks in STATE_HOOKS):
        return "has been changed: its forward, or how it is saved and loaded"
    return None


def become_compressed(layer: nn.Module, form: Form, trials: Trials, *, method: str | None) -> Compressed:
    """Turn a layer without obstacles, itself, into an empty one of this form, and return it.

    The object stays the same, so that all who hold it see the change. So do its bias, its hooks, its mode
    and its attributes; what is new has its weight's device and dtype, and what can be trained its
    `requires_grad`. A layer of this form stays as it is.
    """
    if isinstance(layer, Compressed) and layer.form == form:
        layer.method = method
        return layer
    made = _new_layer(layer, form, trials)
    kind = type(made)
    kept = {
        name: value for name, value in vars(layer).items() if name not in CONTENTS and not hasattr(kind, name)
    }
    vars(made).update(kept)
    made.method, made.origin = method, (_origin(layer),)
    layer.__class__, layer.__dict__ = kind, vars(made)
    assert isinstance(layer, Compressed)
    return layer


def _new_layer(layer: nn.Module, form: Form, trials: Trials) -> Compressed:
    like: Any = layer.weight
    bias: Any = layer.bias
    match form:
        case Factors():
            parts = _new_parts(layer, form, trials, bias)
            return (LowRankConv1D if form.transposed else LowRankLinear)(*parts)
        case Quantized():
            parts = _new_parts(layer, form.factors, trials, None) if form.factors else []
            return (QuantizedConv1D if form.transposed else QuantizedLinear)(form, parts, bias, like)
        case Pivot():
            parts = _new_parts(layer, form.factors, trials, None)
            return (PivotConv1D if form.transposed else PivotLinear)(form, parts, bias, like)
        case Kernels():
            return new_convolution(layer, form, bias, trained=_is_trained(layer))
    raise TypeError(f"no layer runs {form}")


def _origin(layer: nn.Module) -> nn.Module:
    """Return a part of the class that a layer had before it was compressed, without a weight and a bias."""
    if not isinstance(layer, Compressed):
        return new_part(layer, None, None, transposed=False)
    return layer.origin[0] if layer.origin else new_part(layer[-1], None, None, transposed=False)


def _new_parts(
    layer: nn.Module, factors: Factors, trials: Trials, bias: nn.Parameter | None
) -> list[nn.Module]:
    """Make empty factors of a layer's class before; the last one has this bias."""
    old: Any = layer.weight
    origin = _origin(layer)
    trained = _is_trained(layer)
    needs_bias = trials.result(origin, transposed=factors.transposed) == "biased"
    parts: list[nn.Module] = []
    for number, matrix in enumerate(factors.matrices.values()):
        own = bias if number == len(factors.matrices) - 1 else None
        if isinstance(matrix, Int8Matrix):
            parts.append(Int8Factor(matrix.shape, own, old, transposed=factors.transposed))
            continue
        weight = nn.Parameter(torch.empty(matrix.shape, dtype=old.dtype, device=old.device), trained)
        parts.append(new_part(origin, weight, own, transposed=factors.transposed))
        if needs_bias and own is None:
            outputs = matrix.shape[1 if factors.transposed else 0]
            _add_zero_bias(parts[-1], outputs, old)
    return parts


def _is_trained(layer: nn.Module) -> bool:
    """Whether a parameter of a layer other than its bias is trained; where it has none, new ones are."""
    bias: Any = layer.bias
    weights = [parameter for parameter in layer.parameters() if parameter is not bias]
    return not weights or any(parameter.requires_grad for parameter in weights)


def _add_zero_bias(part: nn.Module, outputs: int, like: Tensor) -> None:
    """Give a part a bias that its class needs, outside of the state dict."""
    del part.bias
    zeros = torch.zeros(outputs, dtype=like.dtype, device=like.device)
    part.register_buffer("bias", zeros, persistent=False)
