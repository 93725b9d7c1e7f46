"""A device that is none: its tensors say so, and compute on the CPU; mixed with those of the CPU they raise.

Where a program treats its tensors as those of a GPU must be treated, it runs here too, with the same numbers.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# The device type of torch that needs no library.
DEVICE = torch.device("meta")
aten = torch.ops.aten
# Functions that move a tensor between devices, or read a number from one.
MOVES = (aten._to_copy.default, aten.copy_.default)
# A CPU tensor among the arguments that is an index is moved by torch itself.
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
# Functions with an index.
ITEMS = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


class FakeTensor(torch.Tensor):
    """A tensor that claims to be on `DEVICE`; `inner` is the one on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"FakeTensor({self.inner!r})"

    def numpy(self, *_args, **_kwargs):
        raise TypeError("a tensor on a device has no numpy array; copy it to the CPU first")

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    """Run an operator on the inner tensors."""
    flat = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    on_device = any(isinstance(each, FakeTensor) for each in flat)
    mixed = on_device and any(not isinstance(each, FakeTensor) and each.ndim > 0 for each in flat)
    if mixed and func not in (*MOVES, *INDEXED):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    asked = kwargs.get("device")
    target = on_device if asked is None else torch.device(asked).type == DEVICE.type
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map(_inner, (args, kwargs))
    found = func(*plain_args, **plain_kwargs)
    if func._schema.name.endswith("_") or "out" in kwargs:
        return _same(args, kwargs)
    return tree_map(_wrapped, found) if target else found


def _same(args, kwargs):
    return kwargs.get("out", args[0])


def _inner(value):
    if isinstance(value, FakeTensor):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _wrapped(value):
    return (
        FakeTensor(value) if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor) else value
    )


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Lists become tensors without an operator that could be run here, so they are made before."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == DEVICE:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if func in ITEMS and isinstance(args[0], FakeTensor) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]).to(DEVICE), *args[2:])
        return func(*args, **kwargs)


@contextmanager
def fake_gpu():
    """Let tensors be made on `DEVICE` within."""
    with _Functions(), _Operators():
        yield DEVICE
