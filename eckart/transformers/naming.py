"""Which name in the model a name in the file becomes, and back, by the rules of transformers itself."""

from __future__ import annotations

import re
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from transformers import PreTrainedModel

RULES = "transformers.core_model_loading"
# The renaming of transformers 5; None in transformers 4.
rules: Any = import_module(RULES) if find_spec(RULES) else None
ENDING = ".0.weight"  # Of any name in a factored layer.


class Naming:
    """The renaming rules for one model and one call of `from_pretrained`, whose arguments these are.

    `stored` holds all names of the files: transformers 4 tells by them whether there is a prefix.
    """

    def __init__(self, model: PreTrainedModel, stored: Collection[str], arguments: Mapping[str, Any]) -> None:
        self._model: Any = model
        self._stored = stored
        self._arguments = arguments

    def renamed(self, names: Iterable[str], known: Collection[str]) -> dict[str, str | None]:
        """Map names in the files to names among the `known` ones of the model.

        What has no place there is left out. A tensor that transformers stacks, splits or turns has no name of
        its own in the model: None.
        """
        return self._by_prefix(names, known) if rules is None else self._by_rules(names, known)

    def _by_rules(self, names: Iterable[str], known: Collection[str]) -> dict[str, str | None]:
        # A rule notes when it is used, and saving undoes those that were used.
        mapping = deepcopy(self._arguments["load_config"].weight_mapping or [])
        renamings = [rule for rule in mapping if isinstance(rule, rules.WeightRenaming)]
        converters = [
            rule for rule in mapping if isinstance(rule, rules.WeightConverter) and not _only_decodes(rule)
        ]
        prefix, present = self._model.base_model_prefix, dict.fromkeys(known, True)
        found = {}
        for name in names:
            target, converter = rules.rename_source_key(name, renamings, converters, prefix, present)
            if target in present:
                found[name] = target if converter is None else None
        return found

    def _by_prefix(self, names: Iterable[str], known: Collection[str]) -> dict[str, str | None]:
        prefix = self._model.base_model_prefix
        in_files = bool(prefix) and any(name.startswith(prefix) for name in self._stored)
        in_model = bool(prefix) and hasattr(self._model, prefix)
        found = self._model._get_key_renaming_mapping(  # noqa: SLF001 - transformers 4 has no public one
            list(names),
            self._arguments.get("key_mapping"),
            loading_base_model_from_task_state_dict=in_files and not in_model,
            loading_task_model_from_base_state_dict=in_model and not in_files,
        )
        return {name: target for name, target in found.items() if target in known}


def _only_decodes(converter: Any) -> bool:
    """Whether a rule stands for reading quantized weights, which leaves all others as they are."""
    operations = getattr(converter, "operations", ())
    return bool(operations) and all(hasattr(operation, "hf_quantizer") for operation in operations)


def saved_names(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Map modules' names to those in the files that `save_pretrained` writes; it undoes the renaming."""
    tensors = {name: torch.empty(0, device="meta") for name in names}
    state: dict[str, Any] = {name + ENDING: tensor for name, tensor in tensors.items()}
    state = _old_names(model, state) if rules is None else rules.revert_weight_conversion(model, state)
    saved = {id(tensor): name for name, tensor in state.items()}
    return {name: saved[id(tensor)].removesuffix(ENDING) for name, tensor in tensors.items()}


def _old_names(model: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename as transformers 4 does when it saves."""
    mapping = getattr(model, "_checkpoint_conversion_mapping", None) or {}
    found = {}
    for name, tensor in state.items():
        saved = name
        for original, pattern in mapping.items():
            saved, changes = re.subn(pattern, re.sub(r"\(.*\)", "", original.lstrip("^")), saved)
            if changes:
                break
        found[saved] = tensor
    changed: dict[str, Any] = model._fix_state_dict_keys_on_save(found)  # noqa: SLF001 - there is no public one
    return changed
