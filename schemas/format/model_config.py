"""The factored layers that a model's config.json lists: the metadata of files that others wrote may not."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.format.companion import CONFIG_NAME, parse_config
from schemas.format.encodings.quantization import MODELOPT, MODELOPT_NAME, QUANTIZATION, quantization_entry
from schemas.format.errors import CheckpointError
from schemas.format.header import Header
from schemas.format.metadata import FactoredLayer, factored_names, with_factored

ORIGINAL_WEIGHTS = "original_weights"
QUANT_METHOD = "eckart"
# The entry of ours where QUANTIZATION says how the weights are quantized that are not factored.
ECKART_ENTRY = "eckart"
VERSION = 1
FIRST_FACTOR = ".0.weight"


def quantization_config(
    layers: Mapping[str, FactoredLayer], original_weights: str | None = None
) -> dict[str, Any]:
    """Return the entry of config.json that lists these layers, and the first name of their weights."""
    return {"quant_method": QUANT_METHOD, **own_entry(layers, original_weights)}


def own_entry(layers: Mapping[str, FactoredLayer], original_weights: str | None = None) -> dict[str, Any]:
    """Return the same entry where another method is named as that of the other weights."""
    described = {
        name: layer.model_dump(mode="json", exclude={"dtype", "relative_error"})
        for name, layer in layers.items()
    }
    original = {} if original_weights is None else {ORIGINAL_WEIGHTS: original_weights}
    return {"version": VERSION, **original, "layers": described}


def stored_config(folder: Path, companions: Collection[str]) -> dict[str, Any]:
    """Return the config.json of a checkpoint's folder; empty without a readable one, which a job refuses."""
    config = _read(folder, CONFIG_NAME, companions)
    return with_modelopt(config, _read(folder, MODELOPT_NAME, companions))


def with_modelopt(config: dict[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Add what ModelOpt says in a file of its own, where config.json says nothing of how it is quantized."""
    quantization = document.get("quantization")
    if quantization_entry(config) or not isinstance(quantization, dict):
        return config
    return {**config, QUANTIZATION: {**quantization, "quant_method": MODELOPT}}


def _read(folder: Path, name: str, companions: Collection[str]) -> dict[str, Any]:
    if name not in companions:
        return {}
    try:
        return parse_config((folder / name).read_bytes())
    except CheckpointError:
        return {}


def with_layers_of(config: Mapping[str, Any], headers: Mapping[str, Header]) -> dict[str, Header]:
    """Add the factored layers that only config.json lists to the metadata of the files that hold them.

    So all later steps find the layers in one place, and the output's files say what they hold.
    """
    listed = _layers(config)
    if not listed:
        return dict(headers)
    known = factored_names(header.metadata for header in headers.values())
    dense = {name for header in headers.values() for name in header.tensors.each_name()}
    unknown = {
        name: entry for name, entry in listed.items() if name not in known and f"{name}.weight" not in dense
    }
    return {name: _with_layers(header, unknown) for name, header in headers.items()}


def _layers(config: Mapping[str, Any]) -> Mapping[str, Any]:
    entry = config.get(QUANTIZATION)
    if not isinstance(entry, dict) or entry.get("quant_method") != QUANT_METHOD:
        entry = config.get(ECKART_ENTRY)
    if not isinstance(entry, dict):
        return {}
    layers = entry.get("layers")
    return layers if entry.get("version") == VERSION and isinstance(layers, dict) else {}


def _with_layers(header: Header, listed: Mapping[str, Any]) -> Header:
    found = {}
    for tensor in header.tensors:
        name = tensor.name.removesuffix(FIRST_FACTOR)
        entry = listed.get(name)
        if name == tensor.name or not isinstance(entry, dict):
            continue
        try:
            found[name] = FactoredLayer.model_validate({**entry, "dtype": tensor.dtype})
        except ValidationError:
            continue  # As where the metadata are not readable.
    return replace(header, metadata=with_factored(header.metadata, found)) if found else header
