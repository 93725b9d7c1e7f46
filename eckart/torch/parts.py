"""Modules of a layer's own class with another weight: its factors, and a small copy to try it out on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# What every module has.
MODULE_STATE = frozenset(vars(nn.Module()))
COMPILED = "_compiled_call_impl"
# The attributes for the numbers of inputs and outputs, by whether the weight is stored [inputs, outputs].
SIZE_NAMES = {False: ("in_features", "out_features"), True: ("nx", "nf")}
# A layer is tried out on this many inputs, with this many outputs.
TRIAL_ROWS, TRIAL_INPUTS, TRIAL_OUTPUTS = 64, 3, 2
# Attributes of other types are the same only where they are one object.
VALUES = (bool, int, float, str, type(None), torch.dtype)


class Trials:
    """Finds out whether layers compute a linear map, once for all layers that cannot differ in it.

    Keep one for one call: it takes classes, and objects that are attributes of layers, for unchanging.
    """

    def __init__(self) -> None:
        self._results: dict[tuple[Any, ...], str | None] = {}
        self._tried: list[nn.Module] = []  # so that no `id` is another object's later

    def result(self, layer: nn.Module, *, transposed: bool) -> str | None:
        """Try a layer out on a small copy.

        Return `plain` where it computes a linear map with and without a bias, `biased` where it does so only
        with one, and None where it does not.
        """
        if is_plain(layer):
            return None if transposed else "plain"
        key = (type(layer), transposed, *_attributes(layer, transposed=transposed))
        if key not in self._results:
            self._results[key] = _try_out(layer, transposed=transposed)
            self._tried.append(new_part(layer, None, None, transposed=transposed))
        return self._results[key]


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes as nn.Linear does, whatever else its class has."""
    kind = type(layer)
    return kind.forward is nn.Linear.forward and kind.__call__ is nn.Module.__call__


def new_part(
    layer: nn.Module, weight: nn.Parameter | None, bias: nn.Parameter | None, *, transposed: bool
) -> nn.Module:
    """Make a module of a layer's class with another weight and bias, without its hooks."""
    part: nn.Module = type(layer).__new__(type(layer))
    nn.Module.__init__(part)
    if not is_plain(layer):
        vars(part).update(_own_attributes(layer))
    if weight is not None:
        sizes = weight.shape if transposed else weight.shape[::-1]
        vars(part).update(dict(zip(SIZE_NAMES[transposed], sizes, strict=True)))
    part.register_parameter("weight", weight)
    part.register_parameter("bias", bias)
    return part.train(layer.training)


def _own_attributes(layer: nn.Module) -> dict[str, Any]:
    own = {name: value for name, value in vars(layer).items() if name not in MODULE_STATE}
    own.pop(COMPILED, None)
    return own


def _attributes(layer: nn.Module, *, transposed: bool) -> list[tuple[str, type, Any]]:
    """Return what a small copy of a layer has of it, in a form that can be compared."""
    return [
        (name, type(value), value if isinstance(value, VALUES) else id(value))
        for name, value in sorted(_own_attributes(layer).items())
        if name not in SIZE_NAMES[transposed]
    ]


def _try_out(layer: nn.Module, *, transposed: bool) -> str | None:
    generator = torch.Generator().manual_seed(0)
    sizes = (2 * TRIAL_ROWS * TRIAL_INPUTS, TRIAL_OUTPUTS * TRIAL_INPUTS, TRIAL_OUTPUTS)
    drawn = [torch.randn(n, generator=generator, dtype=torch.float32, device="cpu") for n in sizes]
    x, weight, bias = drawn[0].view(2, TRIAL_ROWS, -1), drawn[1].view(TRIAL_OUTPUTS, -1), drawn[2]
    own = nn.Parameter(weight.mT.contiguous() if transposed else weight)
    with_bias = new_part(layer, own, nn.Parameter(bias), transposed=transposed)
    if not _gives(with_bias, x, x @ weight.mT + bias):
        return None
    without = new_part(layer, own, None, transposed=transposed)
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
