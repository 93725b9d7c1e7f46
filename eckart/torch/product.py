"""The weight of a compressed layer, computed only where something is computed with it.

Many modules read no more of a layer's weight than its dtype, at each call: T5 would otherwise multiply two
matrices for every token that it generates.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# What is known without multiplying.
KNOWN = frozenset(
    {
        Tensor.dtype.__get__,  # type: ignore[attr-defined]
        Tensor.device.__get__,
        Tensor.shape.__get__,  # type: ignore[attr-defined]
        Tensor.ndim.__get__,  # type: ignore[attr-defined]
        Tensor.dim,
        Tensor.size,
        Tensor.numel,
        Tensor.is_floating_point,
    }
)


def product(factors: Sequence[Tensor], *, transposed: bool) -> Tensor:
    """Multiply factors, input side first, to a weight as its layer stores it."""
    return reduce(torch.matmul, factors if transposed else factors[::-1])


def when_used(compute: Callable[[], Tensor], shape: Sequence[int], like: Tensor) -> Tensor:
    """Return what `compute` will return: of this shape, and of the dtype and device of `like`.

    It is computed where it is used; for a compiler, at once.
    """
    if torch.compiler.is_compiling() or is_tracing():  # type: ignore[no-untyped-call]
        return compute()
    made: Product = Tensor._make_wrapper_subclass(  # noqa: SLF001 - no other way
        Product, tuple(shape), dtype=like.dtype, device=like.device
    )
    made.multiplied = compute
    return made


class Product(Tensor):
    """A matrix that is not computed yet; every function of torch gets the result in its place."""

    multiplied: Callable[[], Tensor]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Answer what is known, and call everything else with the product."""
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - as torch's own subclasses do
            if func in KNOWN:
                return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Product, _multiplied, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it without `func`
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do the same where torch calls itself."""
        args, kwargs = tree_map_only(Product, _multiplied, (args, kwargs or {}))
        return func(*args, **kwargs)


def _multiplied(made: Product) -> Tensor:
    return made.multiplied()
