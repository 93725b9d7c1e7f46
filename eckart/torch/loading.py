"""Loading a compressed checkpoint into the model that it was made from."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, overload

import torch
from torch import nn

from eckart.checkpoint import listed
from eckart.errors import LoadError
from eckart.torch.files import WEIGHT, Contents, TensorReader, read_contents
from eckart.torch.matching import Match, Matching, ModelState, match
from eckart.torch.meta import check_all_known, give_memory
from eckart.torch.placing import place
from eckart.torch.renaming import Rename, prefix_changes, renaming
from eckart.torch.swapping import become_compressed
from eckart.torch.unlisted import with_unlisted_factors

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

Model = TypeVar("Model", bound=nn.Module)
USE_FROM_PRETRAINED = (
    "If transformers changes these names as it loads: from_pretrained takes the compressed folder after "
    "`import eckart.transformers`, or what `eckart expand` makes of it"
)
# What a quantized matrix may be stored in.
INTEGERS = frozenset({"I8", "U8", "I32"})
Dequantize = bool | Literal["auto"]


class IncompatibleKeys(NamedTuple):
    """Names of the model that the file lacks, and names of the file without a place."""

    missing_keys: list[str]
    unexpected_keys: list[str]


@overload
def load_compressed(
    model: Model,
    path: str | os.PathLike[str],
    *,
    strict: Literal[True] = True,
    rename: Rename | None = None,
    dequantize: Dequantize = "auto",
) -> Model: ...
@overload
def load_compressed(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: Literal[False],
    rename: Rename | None = None,
    dequantize: Dequantize = "auto",
) -> IncompatibleKeys: ...
def load_compressed(
    model: Model,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    rename: Rename | None = None,
    dequantize: Dequantize = "auto",
) -> Model | IncompatibleKeys:
    """Load a compressed checkpoint, a file, an index or a directory, into the model it was made from.

    Each compressed layer of the model becomes a `LowRankLinear`, a `QuantizedLinear` or a `PivotLinear`, or
    its sister in place of a Conv1D, with the same bias, hooks, attributes, device, dtype and mode; on the
    meta device, which has no memory, it is put on the CPU. A layer that cannot run so, such as an embedding,
    gets the dense weight, and one warning lists all of these; `dequantize=True` makes every layer dense, and
    False refuses what cannot run. The model is changed in place and returned. A mismatch raises a LoadError
    before any change.

    `rename` leads from the file's names to the model's: a mapping of names of tensors or modules, pairs of
    prefixes, or a function of a tensor's name. A prefix that all names have or lack is found without it. With
    `strict=False`, names that are missing or unexpected are returned as `load_state_dict` does; the factors
    of a layer must have their place all the same.
    """
    contents = read_contents(Path(path))
    state = ModelState(model)
    contents = with_unlisted_factors(contents, state, renaming(rename))
    matching = _fitting(state, contents, rename, dequantize=dequantize is True)
    _check(state, contents, matching, strict=strict)
    check_all_known(model, state, matching)
    if not contents.factored and all(shard.layers is None for shard in contents.shards):
        warnings.warn(
            f"{path} holds no factored layers and does not say that eckart made it, so the model gets its "
            "weights as they are: right for a dense result, wrong if you meant a factored one",
            stacklevel=2,
        )
    if dequantize is False:
        _refuse_products(matching)
    contents.check()
    for one in matching.matches:
        if one.reason is None:
            layer, stored = state.modules[one.module], one.stored
            become_compressed(layer, stored.form, state.trials, method=stored.entry.method)
    give_memory(model)
    place(model, contents, matching)
    if dequantize == "auto":
        _warn_of_products(matching)
    return model if strict else IncompatibleKeys(list(matching.missing), list(matching.strange.values()))


def _fitting(state: ModelState, contents: Contents, rename: Rename | None, *, dequantize: bool) -> Matching:
    """Match by the given names or, where these do not fit, by the one change of a prefix that does."""
    given = match(state, contents, renaming(rename), dequantize=dequantize)
    if rename is not None or given.is_complete:
        return given
    fitting = [other for _, other in _by_prefix(state, contents, dequantize=dequantize) if other.is_complete]
    return fitting[0] if len(fitting) == 1 else given


def _by_prefix(
    state: ModelState, contents: Contents, *, dequantize: bool
) -> Iterable[tuple[tuple[str, str], Matching]]:
    stored = [name + WEIGHT for name in contents.factored] + contents.unfactored
    wanted = state.places.keys() | {name + WEIGHT for name in state.factored}
    for change in prefix_changes(stored, wanted):
        try:
            yield change, match(state, contents, renaming([change]), dequantize=dequantize)
        except LoadError:
            continue


def _check(state: ModelState, contents: Contents, matching: Matching, *, strict: bool) -> None:
    """Refuse what does not fit, naming the layer, while the model is unchanged."""
    _check_factored(state, matching)
    hint = _hint(state, contents, matching)
    if matching.homeless:
        names = listed([repr(name) for name in matching.homeless])
        raise LoadError(f"the checkpoint holds factors of {names}, but the model has no such module{hint}")
    for name, layer in matching.products.items():
        if matching.places[name].shape != layer.form.shape:
            raise _shapes_differ(name, matching.places[name].shape, layer.form.shape)
    for name, stored in matching.given.items():
        if matching.places[name].shape != contents.shapes[stored]:
            raise _shapes_differ(name, matching.places[name].shape, contents.shapes[stored])
        if matching.places[name].is_floating and contents.dtypes[stored] in INTEGERS:
            raise LoadError(
                f"{stored} holds integers, and nothing in the checkpoint says what they stand for; load it "
                "with the library that made it"
            )
    if not strict:
        return
    if matching.missing:
        raise LoadError(
            f"the checkpoint lacks what the model needs: {listed(matching.missing)}; strict=False leaves the "
            f"model's own values there{hint}"
        )
    if strange := [
        stored for name, stored in matching.strange.items() if not _is_known(state, contents, name, stored)
    ]:
        raise LoadError(
            f"the model has no place for what the checkpoint holds: {listed(strange)}; strict=False "
            f"leaves it out{hint}"
        )


def _check_factored(state: ModelState, matching: Matching) -> None:
    """Refuse a whole weight for what is compressed in the model; that `load_state_dict` could not tell."""
    taken = {f"{one.module}.{below}" for one in matching.matches for below in one.stored.form.tensors}
    reasons = [
        f"{one.stored.name} {one.reason}"
        for one in matching.matches
        if one.module in state.factored and one.reason
    ]
    reasons += [
        f"{stored} is whole in the checkpoint"
        for name, stored in (*matching.strange.items(), *matching.given.items())
        if name.endswith(WEIGHT) and name.removesuffix(WEIGHT) in state.factored and name not in taken
    ]
    if reasons:
        raise LoadError(
            f"these layers are compressed in the model already, so that they cannot take a whole weight: "
            f"{listed(reasons)}. Build the model anew, and load into that"
        )


def _is_known(state: ModelState, contents: Contents, name: str, stored: str) -> bool:
    """Whether the model has the same values already, in a buffer that it does not save."""
    buffer = state.unsaved_buffers.get(name)
    if buffer is None or buffer.is_meta or tuple(buffer.shape) != contents.shapes[stored]:
        return False
    return torch.equal(buffer.cpu(), TensorReader(contents).read(stored).to(buffer.dtype))


def _shapes_differ(name: str, own: tuple[int, ...], stored: tuple[int, ...]) -> LoadError:
    return LoadError(
        f"{name} is {list(own)} in the model, but {list(stored)} in the checkpoint; build the model with the "
        "checkpoint's own configuration"
    )


def _hint(state: ModelState, contents: Contents, matching: Matching) -> str:
    """Name the way by which most of what has no place would find it."""
    homeless = _without_place(matching)
    if not homeless:
        return ""
    changes = _by_prefix(state, contents, dequantize=False)
    left, best = min(((_without_place(other), change) for change, other in changes), default=(homeless, None))
    hint = f". Most names fit with rename=[{best!r}]" if 2 * left < homeless else ""
    return hint + (". " + USE_FROM_PRETRAINED if left and state.is_pretrained else "")


def _without_place(matching: Matching) -> int:
    return len(matching.homeless) + len(matching.strange)


def _refuse_products(matching: Matching) -> None:
    if offenders := _multiplied(matching):
        names = json.dumps([one.stored.name for one in offenders])
        raise LoadError(
            f"these layers cannot run as factors: {_reasons(offenders)}. Compress again with them excluded: "
            f'"exclude": {names}'
        )


def _warn_of_products(matching: Matching) -> None:
    if offenders := _multiplied(matching):
        warnings.warn(
            f"these layers cannot run as factors, so the model got their products, which take as much memory "
            f"as before: {_reasons(offenders)}. To have their exact weights, compress again without them",
            stacklevel=3,
        )


def _multiplied(matching: Matching) -> list[Match]:
    return [one for one in matching.matches if one.reason is not None]


def _reasons(offenders: Iterable[Match]) -> str:
    return "; ".join(f"{one.stored.name} ({one.reason})" for one in offenders)
