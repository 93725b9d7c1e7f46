"""Copying a file's tensors to their places in a model, one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from eckart.torch.files import TensorReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eckart.torch.files import Contents
    from eckart.torch.matching import Matching


def place(model: nn.Module, contents: Contents, matching: Matching) -> None:
    """Copy each tensor, or product of factors, to its place in a model that has the layers of factors.

    Beside the model, memory holds one of them at a time. Only modules that load in a way of their own get
    all that is theirs at once, as `load_state_dict` gives it. That is not used for the others: it takes
    hours where one module holds tens of thousands.
    """
    reader = TensorReader(contents)
    targets: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    targets |= dict(model.named_buffers(remove_duplicate=False))
    special = set(_special_modules(model))
    aliases = matching.aliases
    filled = {*matching.given, *matching.products, *aliases}
    rest: dict[str, Tensor] = {}
    with torch.no_grad():
        # In the model's order: of a tied tensor that a file has twice, the last one stays.
        for name in (*(name for name in targets if name in filled), *(filled - targets.keys())):
            source = aliases.get(name, name)
            if name not in targets or _is_below(name, special):
                rest[name] = _value(source, reader, matching)
            elif source == name:
                targets[name].copy_(_value(name, reader, matching))
    if rest:
        model.load_state_dict(rest, strict=False)


def _value(name: str, reader: TensorReader, matching: Matching) -> Tensor:
    if name in matching.given:
        return reader.read(matching.given[name])
    return matching.products[name].weight(reader.read)


def _special_modules(model: nn.Module) -> Iterator[str]:
    """Name the modules that have a way of their own to load what is theirs and what is below them."""
    if type(model).load_state_dict is not nn.Module.load_state_dict or "load_state_dict" in vars(model):
        yield ""
    for name, module in model.named_modules(remove_duplicate=False):
        is_stock = type(module)._load_from_state_dict is nn.Module._load_from_state_dict  # noqa: SLF001
        hooks = (module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks)  # noqa: SLF001
        if not is_stock or "_load_from_state_dict" in vars(module) or any(hooks):
            yield name


def _is_below(name: str, modules: set[str]) -> bool:
    while name:
        name = name.rpartition(".")[0]
        if name in modules:
            return True
    return False
