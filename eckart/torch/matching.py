"""Which place in a model each tensor of a file gets, decided before anything is changed."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from eckart.errors import LoadError
from eckart.torch.files import BIAS, WEIGHT, Contents
from eckart.torch.layers import Compressed
from eckart.torch.matrices import FLOATS
from eckart.torch.parts import Trials
from eckart.torch.swapping import obstacle_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from eckart.torch.forms import Form
    from eckart.torch.stored_weight import StoredWeight


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of a state dict; places with one `tensor` are one tensor under several names."""

    shape: tuple[int, ...]
    tensor: object
    is_floating: bool = True


class ModelState:
    """A model's modules, parameters and state dict, under all names that they have."""

    def __init__(self, model: nn.Module) -> None:
        self.trials = Trials()
        self.is_pretrained = hasattr(model, "from_pretrained")
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.names: dict[int, list[str]] = defaultdict(list)
        for name, module in self.modules.items():
            self.names[id(module)].append(name)
        self.factored = {name: layer for name, layer in self.modules.items() if isinstance(layer, Compressed)}
        self._weights: dict[int, set[str]] = defaultdict(set)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._weights[id(parameter)].add(name)
        state = model.state_dict(keep_vars=True)
        self.meta = [name for name, value in state.items() if isinstance(value, Tensor) and value.is_meta]
        self.places = {
            name: Place(
                tuple(getattr(value, "shape", ())),
                id(value),
                not isinstance(value, Tensor) or value.is_floating_point(),
            )
            for name, value in state.items()
        }
        buffers = model.named_buffers(remove_duplicate=False)
        self.unsaved_buffers = {name: buffer for name, buffer in buffers if name not in self.places}
        self._may_lack = _patterns(model, "_keys_to_ignore_on_load_missing")
        self._may_ignore = _patterns(model, "_keys_to_ignore_on_load_unexpected")

    def tied(self, layer: nn.Module) -> list[str]:
        """Return the names that a layer's weight has beside the layer's own."""
        parts = layer.form.tensors if isinstance(layer, Compressed) else (WEIGHT.lstrip("."),)
        own = {f"{name}.{below}" for name in self.names[id(layer)] for below in parts}
        state = layer.state_dict(keep_vars=True)
        found = set().union(*(self._weights.get(id(state[below]), ()) for below in parts))
        return sorted(found - own)

    def weight_shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a weight by its name, also of one that the model has as factors."""
        layer = self.factored.get(name.removesuffix(WEIGHT))
        if layer is not None:
            return layer.form.shape
        return self.places[name].shape if name in self.places else None

    def may_lack(self, name: str) -> bool:
        """Whether the model's class says that files need not have this."""
        return any(pattern.search(name) for pattern in self._may_lack)

    def may_ignore(self, name: str) -> bool:
        """Whether the model's class says that it has no use for this."""
        return any(pattern.search(name) for pattern in self._may_ignore)


@dataclass(frozen=True, slots=True)
class Match:
    """A compressed layer and the name of its module in a model; `reason` says why it cannot run there."""

    stored: StoredWeight
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
    products: Mapping[str, StoredWeight]
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
        name, layer = one.module, one.stored
        if one.reason is None:
            _give(given, {f"{name}.{below}": stored for below, stored in layer.tensors.items()})
        elif name + WEIGHT in given:
            raise _same_name(given[name + WEIGHT], layer.name + WEIGHT, name + WEIGHT)
        elif name + WEIGHT in places:
            products[name + WEIGHT] = layer
        else:
            homeless.append(layer.name)
        if layer.bias in contents.shapes:
            bias = renamed(layer.name + BIAS) if one.reason else f"{name}.{layer.form.bias}"
            _give(given, {bias: layer.bias})
    strange = {n: stored for n, stored in given.items() if n not in places and not state.may_ignore(n)}
    given = {name: stored for name, stored in given.items() if name in places}
    # A weight that is whole in the file under another name needs no product.
    whole = {places[name].tensor for name in given}
    products = {name: layer for name, layer in products.items() if places[name].tensor not in whole}
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
    forms: dict[int, tuple[str, Form]] = {}
    for layer in contents.factored.values():
        name = _module_name(layer.name, renamed)
        reason = "is multiplied out as asked" if dequantize else _reason(state, layer, name, plain)
        matches.append(Match(layer, name, reason))
        if reason is not None:
            continue
        other, its_form = forms.setdefault(id(state.modules[name]), (name, layer.form))
        if its_form != layer.form:
            raise LoadError(
                f"{other} and {name} are one module in the model, but have different ranks or forms"
            )
    return tuple(matches)


def _module_name(name: str, renamed: Callable[[str], str]) -> str:
    weight = renamed(name + WEIGHT)
    if not weight.endswith(WEIGHT):
        raise LoadError(
            f"`rename` turns {name}{WEIGHT} into {weight}; the name of a factored weight ends in {WEIGHT}"
        )
    return weight.removesuffix(WEIGHT)


def _reason(state: ModelState, stored: StoredWeight, name: str, plain: Mapping[str, str]) -> str | None:
    """Say why a layer cannot stay compressed in this model; None where it can."""
    layer = state.modules.get(name) if name else None
    if layer is None:
        return "is no module"
    kind = type(layer).__name__
    if why := obstacle_to(layer, stored.form, state.trials):
        return f"{kind} {why}"
    if tied := state.tied(layer):
        return f"tied to {' and '.join(tied)}"
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if tuple(weight.shape) != stored.form.shape:
        raise LoadError(
            f"{name} is a {kind} of shape {list(weight.shape)} in the model, but of "
            f"{list(stored.form.shape)} in the checkpoint; build the model with the checkpoint's own "
            "configuration"
        )
    if whole := [other for other in state.names[id(layer)] if other + WEIGHT in plain]:
        return f"whole in the file as {whole[0]}{WEIGHT}"
    return None


def _places(state: ModelState, matches: Iterable[Match]) -> dict[str, Place]:
    """Return the state dict as it is once these layers are compressed."""
    places = dict(state.places)
    for one in matches:
        layer, form, old, old_bias = state.modules[one.module], one.stored.form, ["weight"], "bias"
        if isinstance(layer, Compressed):
            old, old_bias = list(layer.form.tensors), layer.form.bias
        for name in state.names[id(layer)]:
            for below in old:
                places.pop(f"{name}.{below}", None)
            bias = places.pop(f"{name}.{old_bias}", None)
            for below, kind in form.tensors.items():
                places[f"{name}.{below}"] = Place(kind.shape, (id(layer), below), kind.dtypes == FLOATS)
            if bias is not None:
                places[f"{name}.{form.bias}"] = bias
    return places


def _patterns(model: nn.Module, attribute: str) -> list[re.Pattern[str]]:
    """Collect patterns that transformers' classes declare."""
    found = {pattern for module in model.modules() for pattern in getattr(module, attribute, None) or ()}
    return [re.compile(pattern) for pattern in sorted(found)]
