"""Factors in a file that lost its metadata: they are told by their names and shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from eckart.torch.files import WEIGHT, factor_names
from eckart.torch.forms import INT8, ROWS, Factors, chain_sizes
from eckart.torch.manifest import FactoredLayer
from eckart.torch.matrices import PACKED, SCALE
from eckart.torch.stored_weight import StoredWeight
from eckart.torch.swapping import obstacle

if TYPE_CHECKING:
    from collections.abc import Callable

    from eckart.torch.files import Contents
    from eckart.torch.matching import ModelState


def with_unlisted_factors(contents: Contents, state: ModelState, renamed: Callable[[str], str]) -> Contents:
    """Add layers of a file that lost its metadata: factors that chain to a weight of the model."""
    found = {}
    for first in contents.shapes:
        name = first.removesuffix(f".0{WEIGHT}")
        if name == first or name in contents.factored or _has_more(name, contents):
            continue
        target = renamed(name + WEIGHT)
        shape, module = state.weight_shape(target), target.removesuffix(WEIGHT)
        if shape is None or (renamed(first) in state.places and module not in state.factored):
            continue
        layer = _unlisted(name, contents, state, module, shape)
        if layer is not None:
            found[name] = layer
    return replace(contents, factored={**contents.factored, **found}) if found else contents


def _has_more(name: str, contents: Contents) -> bool:
    """Whether there are more than factors, which would not make up the weight alone."""
    more = (WEIGHT, WEIGHT + SCALE, WEIGHT + PACKED, f".{ROWS}")
    return any(name + ending in contents.shapes for ending in more)


def _unlisted(
    name: str, contents: Contents, state: ModelState, module: str, shape: tuple[int, ...]
) -> StoredWeight | None:
    factors = [factor for factor in factor_names(name) if factor in contents.shapes]
    codec = _codec(factors, contents)
    layer = state.modules.get(module)
    turned = layer is not None and obstacle(layer, state.trials, transposed=True) is None
    for transposed in (turned, not turned):
        sizes = chain_sizes([contents.shapes[factor] for factor in factors], transposed=transposed)
        if sizes is not None and shape == ((sizes[0], sizes[-1]) if transposed else (sizes[-1], sizes[0])):
            entry = FactoredLayer(
                rank=sizes[1], shape=(shape[0], shape[1]), transposed=transposed, codec=codec
            )
            return StoredWeight(name, entry, Factors(transposed, sizes, codec))
    return None


def _codec(factors: list[str], contents: Contents) -> str | None:
    scales = [contents.shapes.get(factor + SCALE) for factor in factors]
    return INT8 if scales == [(contents.shapes[factor][0], 1) for factor in factors] else None
