"""Which place in a model each tensor of a file gets, decided before anything is changed."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from eckart.errors import LoadError
from eckart.torch.files import BIAS, WEIGHT, Contents, Factors, factor_names
from eckart.torch.layers import LowRank, obstacle
from eckart.torch.parts import Trials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of a state dict; places with one `tensor` are one tensor under several names."""

    shape: tuple[int, ...]
    tensor: object


class ModelState:
    """A model's modules, parameters and state dict, under all names that they have."""

    def __init__(self, model: nn.Module) -> None:
        self.trials = Trials()
        self.is_pretrained = hasattr(model, "from_pretrained")
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.names: dict[int, list[str]] = defaultdict(list)
        for name, module in self.modules.items():
            self.names[id(module)].append(name)
        self.factored = {name: layer for name, layer in self.modules.items() if isinstance(layer, LowRank)}
        self._weights: dict[int, set[str]] = defaultdict(set)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._weights[id(parameter)].add(name)
        state = model.state_dict(keep_vars=True)
        self.meta = [name for name, value in state.items() if isinstance(value, Tensor) and value.is_meta]
        self.places = {
            name: Place(tuple(getattr(value, "shape", ())), id(value)) for name, value in state.items()
        }
        buffers = model.named_buffers(remove_duplicate=False)
        self.unsaved_buffers = {name: buffer for name, buffer in buffers if name not in self.places}
        self._may_lack = _patterns(model, "_keys_to_ignore_on_load_missing")
        self._may_ignore = _patterns(model, "_keys_to_ignore_on_load_unexpected")

    def tied(self, layer: nn.Module) -> list[str]:
        """Return the names that a layer's weight has beside the layer's own."""
        parts = {f".{i}": part for i, part in enumerate(layer)} if isinstance(layer, LowRank) else {"": layer}
        own = {name + below + WEIGHT for name in self.names[id(layer)] for below in parts}
        found = set().union(*(self._weights[id(part.weight)] for part in parts.values()))
        return sorted(found - own)

    def weight_shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a weight by its name, also of one that the model has as factors."""
        if name in self.places:
            return self.places[name].shape
        layer = self.factored.get(name.removesuffix(WEIGHT))
        return None if layer is None else tuple(layer.weight.shape)

    def may_lack(self, name: str) -> bool:
        """Whether the model's class says that files need not have this."""
        return any(pattern.search(name) for pattern in self._may_lack)

    def may_ignore(self, name: str) -> bool:
        """Whether the model's class says that it has no use for this."""
        return any(pattern.search(name) for pattern in self._may_ignore)


@dataclass(frozen=True, slots=True)
class Match:
    """A factored layer and the name of its module in a model; `reason` says why factors cannot run there."""

    factors: Factors
    module: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Matching:
    """Where each tensor of a file goes: `given` maps places to names in the file.

    `places` is the state dict once the layers without a `reason` are factored. `strange` maps names without a
    place to those in the file, and `homeless` are the factored layers without one.
    """

    matches: tuple[Match, ...]
    places: Mapping[str, Place]
    given: Mapping[str, str]
    products: Mapping[str, Factors]
    missing: tuple[str, ...]
    strange: Mapping[str, str]
    homeless: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether everything has its place, and every place its tensor."""
        return not (self.missing or self.strange or self.homeless)

    @property
    def aliases(self) -> dict[str, str]:
        """The places that are filled by another name of the same tensor."""
        filled = {self.places[name].tensor: name for name in (*self.given, *self.products)}
        empty = self.places.keys() - self.given.keys() - self.products.keys()
        return {
            name: filled[self.places[name].tensor] for name in empty if self.places[name].tensor in filled
        }


def match(
    state: ModelState, contents: Contents, renamed: Callable[[str], str], *, dequantize: bool
) -> Matching:
    """Find the place of each tensor of a file; `dequantize` leaves no layer factored."""
    plain = _plain(contents, renamed)
    matches = _matches(state, contents, renamed, plain, dequantize=dequantize)
    places = _places(state, [one for one in matches if one.reason is None])
    given, products, homeless = dict(plain), {}, []
    for one in matches:
        name, factors = one.module, one.factors
        if one.reason is None:
            names = factor_names(name, len(factors.matrices))
            _give(given, dict(zip(names, factors.matrices, strict=True)))
        elif name + WEIGHT in given:
            raise _same_name(given[name + WEIGHT], factors.name + WEIGHT, name + WEIGHT)
        elif name + WEIGHT in places:
            products[name + WEIGHT] = factors
        else:
            homeless.append(factors.name)
        if factors.bias in contents.shapes:
            bias = renamed(factors.name + BIAS) if one.reason else f"{name}.{len(factors.matrices) - 1}{BIAS}"
            _give(given, {bias: factors.bias})
    strange = {n: stored for n, stored in given.items() if n not in places and not state.may_ignore(n)}
    given = {name: stored for name, stored in given.items() if name in places}
    # A weight that is whole in the file under another name needs no product.
    whole = {places[name].tensor for name in given}
    products = {name: factors for name, factors in products.items() if places[name].tensor not in whole}
    filled = whole | {places[name].tensor for name in products}
    return Matching(
        matches,
        places,
        given,
        products,
        missing=tuple(
            n for n, place in places.items() if place.tensor not in filled and not state.may_lack(n)
        ),
        strange=strange,
        homeless=tuple(homeless),
    )


def _plain(contents: Contents, renamed: Callable[[str], str]) -> dict[str, str]:
    """Map the model's names of tensors that belong to no factored layer to the names in the file."""
    plain: dict[str, str] = {}
    for name in contents.unfactored:
        _give(plain, {renamed(name): name})
    return plain


def _give(given: dict[str, str], more: Mapping[str, str]) -> None:
    for name, stored in more.items():
        if name in given:
            raise _same_name(given[name], stored, name)
        given[name] = stored


def _same_name(first: str, second: str, name: str) -> LoadError:
    return LoadError(f"`rename` gives {first} and {second} the same name, {name}")


def _matches(
    state: ModelState,
    contents: Contents,
    renamed: Callable[[str], str],
    plain: Mapping[str, str],
    *,
    dequantize: bool,
) -> tuple[Match, ...]:
    matches: list[Match] = []
    sizes: dict[int, tuple[str, tuple[int, ...]]] = {}
    for factors in contents.factored.values():
        name = _module_name(factors.name, renamed)
        reason = "is multiplied out as asked" if dequantize else _reason(state, factors, name, plain)
        matches.append(Match(factors, name, reason))
        if reason is not None:
            continue
        other, its_sizes = sizes.setdefault(id(state.modules[name]), (name, factors.sizes))
        if its_sizes != factors.sizes:
            raise LoadError(f"{other} and {name} are one module in the model, but have different ranks")
    return tuple(matches)


def _module_name(name: str, renamed: Callable[[str], str]) -> str:
    weight = renamed(name + WEIGHT)
    if not weight.endswith(WEIGHT):
        raise LoadError(
            f"`rename` turns {name}{WEIGHT} into {weight}; the name of a factored weight ends in {WEIGHT}"
        )
    return weight.removesuffix(WEIGHT)


def _reason(state: ModelState, factors: Factors, name: str, plain: Mapping[str, str]) -> str | None:
    """Say why a layer cannot stay factored in this model; None where it can."""
    layer = state.modules.get(name) if name else None
    if layer is None:
        return "is no module"
    kind = type(layer).__name__
    if why := obstacle(layer, state.trials, transposed=factors.entry.transposed):
        return f"{kind} {why}"
    if tied := state.tied(layer):
        return f"tied to {' and '.join(tied)}"
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if tuple(weight.shape) != factors.entry.shape:
        raise LoadError(
            f"{name} is a {kind} of shape {list(weight.shape)} in the model, but of "
            f"{list(factors.entry.shape)} in the checkpoint; build the model with the checkpoint's own "
            "configuration"
        )
    if whole := [other for other in state.names[id(layer)] if other + WEIGHT in plain]:
        return f"whole in the file as {whole[0]}{WEIGHT}"
    return None


def _places(state: ModelState, matches: Iterable[Match]) -> dict[str, Place]:
    """Return the state dict as it is once these layers are factored."""
    places = dict(state.places)
    for one in matches:
        layer = state.modules[one.module]
        steps = range(len(one.factors.matrices))
        sizes = one.factors.sizes
        for name in state.names[id(layer)]:
            places.pop(name + WEIGHT, None)
            bias = places.pop(name + BIAS, None)
            if isinstance(layer, LowRank):
                for factor in factor_names(name, len(layer)):
                    places.pop(factor, None)
                bias = places.pop(f"{name}.{len(layer) - 1}{BIAS}", None)
            for i in steps:
                shape = sizes[i : i + 2] if one.factors.entry.transposed else sizes[i : i + 2][::-1]
                places[f"{name}.{i}{WEIGHT}"] = Place(shape, (id(layer), i))
            if bias is not None:
                places[f"{name}.{steps[-1]}{BIAS}"] = bias
    return places


def _patterns(model: nn.Module, attribute: str) -> list[re.Pattern[str]]:
    """Collect patterns that transformers' classes declare."""
    found = {pattern for module in model.modules() for pattern in getattr(module, attribute, None) or ()}
    return [re.compile(pattern) for pattern in sorted(found)]
