"""What config.json says of a quantized model, some of whose weights are quantized no longer."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from schemas.format.encodings.quantization import (
    COMPRESSED_TENSORS,
    FP8,
    MODELOPT,
    MXFP4,
    QUANTIZATION,
    quantization_entry,
    read_quantization,
)

# Loaders that look for the scales of all modules but these.
SKIP_LISTS = {
    FP8: ("modules_to_not_convert", "ignored_layers"),
    MXFP4: ("modules_to_not_convert",),
    COMPRESSED_TENSORS: ("ignore",),
    MODELOPT: ("ignore", "exclude_modules"),
}
# A loader that stacks experts asks for the module that holds them, not for each.
_of_experts = re.compile(r"(.*\.experts)\.(?:[0-9]+\..*|\w+\.[0-9]+)").fullmatch


def with_skipped(config: Mapping[str, Any], names: Iterable[str], left: Collection[str]) -> dict[str, Any]:
    """Return a config.json that says of these modules that they are not quantized; `left` still are."""
    entry = quantization_entry(config)
    lists = SKIP_LISTS.get(read_quantization(config).method)
    if lists is None:
        return dict(config)
    name = next((name for name in lists if isinstance(entry.get(name), list)), lists[0])
    given = entry.get(name)
    skipped = given if isinstance(given, list) else []
    found = dict.fromkeys([*skipped, *_with_stacks(names, left)])
    return _with_entry(config, {**entry, name: list(found)})


def with_modelopt_skipped(document: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return ModelOpt's own file, in which these modules are excluded too."""
    quantization = document.get("quantization")
    if not isinstance(quantization, dict):
        return dict(document)
    given = quantization.get("exclude_modules")
    excluded = dict.fromkeys([*(given if isinstance(given, list) else []), *names])
    return {**document, "quantization": {**quantization, "exclude_modules": list(excluded)}}


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a model that has no quantized weight any more."""
    return _with_entry(config, None)


def _with_entry(config: Mapping[str, Any], entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a config.json with another entry, or none, in the place of its own, maybe of its text model."""
    changed = dict(config)
    if not isinstance(config.get(QUANTIZATION), dict) and isinstance(config.get("text_config"), dict):
        return {**changed, "text_config": _with_entry(config["text_config"], entry)}
    changed.pop(QUANTIZATION, None)
    if entry is None:
        return changed
    # In its place, since the order of keys is the publisher's.
    return {key: entry if key == QUANTIZATION else value for key, value in config.items()}


def _with_stacks(names: Iterable[str], left: Collection[str]) -> list[str]:
    names = list(names)
    partial = {found[1] for name in left if (found := _of_experts(name))}
    stacks = dict.fromkeys(found[1] for name in names if (found := _of_experts(name)))
    return [*names, *(stack for stack in stacks if stack not in partial)]
