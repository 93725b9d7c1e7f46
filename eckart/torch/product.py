"""The weight of a layer of factors, multiplied only where something is computed with it.

Many modules read no more of a layer's weight than its dtype, at each call: T5 would otherwise multiply two
matrices for every token that it generates.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
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


def wide_product(factors: Sequence[Tensor], *, transposed: bool) -> Tensor:
    """Multiply as `product` does, but in float32 at least."""
    wide = torch.promote_types(torch.float32, factors[0].dtype)
    return product([factor.to(wide) for factor in factors], transposed=transposed)


class Product(Tensor):
    """A matrix that is the product of factors; every function of torch gets the product in its place."""

    factors: Sequence[Tensor]
    transposed: bool

    @staticmethod
    def of(factors: Sequence[Tensor], *, transposed: bool) -> Product:
        """Return the product of factors, input side first, as `product` does, but not yet multiplied."""
        shapes = [factor.shape for factor in (factors if transposed else factors[::-1])]
        made: Product = Tensor._make_wrapper_subclass(  # noqa: SLF001 - no other way
            Product, (shapes[0][0], shapes[-1][1]), dtype=factors[0].dtype, device=factors[0].device
        )
        made.factors, made.transposed = factors, transposed
        return made

    def multiplied(self) -> Tensor:
        """Multiply the factors."""
        return product(self.factors, transposed=self.transposed)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Answer what is known, and call everything else with the product."""
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - as torch's own subclasses do
            if func in KNOWN:
                return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Product, Product.multiplied, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it without `func`
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do the same where torch calls itself."""
        args, kwargs = tree_map_only(Product, Product.multiplied, (args, kwargs or {}))
        return func(*args, **kwargs)
