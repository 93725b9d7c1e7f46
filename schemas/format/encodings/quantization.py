"""What config.json, and the metadata of files for diffusion models, say of how weights are quantized."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

QUANTIZATION = "quantization_config"
# Beside config.json, by programs that do not write into it.
MODELOPT_NAME = "hf_quant_config.json"
FP8, COMPRESSED_TENSORS, MODELOPT, MXFP4 = "fp8", "compressed-tensors", "modelopt", "mxfp4"
COMFY_METADATA = "_quantization_metadata"


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How one group of modules is quantized, as compressed-tensors describes it."""

    format: str
    kind: str
    bits: int
    strategy: str
    symmetric: bool
    group_size: int | None
    block: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Quantization:
    """What is said of the weights: the method, its parameters, and the format of single modules.

    `algorithm` is that of ModelOpt. `formats` has those that a file's metadata give for modules.
    """

    method: str = ""
    block: tuple[int, int] | None = None
    algorithm: str = ""
    schemes: tuple[WeightScheme, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)


def read_quantization(config: Mapping[str, Any], files: Iterable[Mapping[str, str]] = ()) -> Quantization:
    """Return what config.json and the metadata of all files say; what is not readable says nothing."""
    entry = quantization_entry(config)
    method = entry.get("quant_method")
    method = method if isinstance(method, str) else ""
    algorithm = entry.get("quant_algo")
    if not method and algorithm is not None:
        method = MODELOPT
    return Quantization(
        method=method,
        block=_block(entry.get("weight_block_size")),
        algorithm=algorithm if isinstance(algorithm, str) else "",
        schemes=_schemes(entry) if method == COMPRESSED_TENSORS else (),
        formats={name: found for metadata in files for name, found in comfy_formats(metadata).items()},
    )


def quantization_entry(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry that says how a model is quantized, of its text model where it has a part for that."""
    text = config.get("text_config")
    for owner in (config, text if isinstance(text, dict) else {}):
        entry = owner.get(QUANTIZATION)
        if isinstance(entry, dict):
            return entry
    return {}


def comfy_formats(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the formats of modules that a file's metadata list."""
    layers = comfy_document(metadata).get("layers")
    if not isinstance(layers, dict):
        return {}
    found = {
        name: entry.get("format") if isinstance(entry, dict) else entry for name, entry in layers.items()
    }
    return {name: text for name, text in found.items() if isinstance(text, str)}


def comfy_document(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the entry of a file's metadata that describes quantized modules; empty if not readable."""
    try:
        document = json.loads(metadata.get(COMFY_METADATA, ""))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def without_formats(metadata: Mapping[str, str], modules: Collection[str]) -> dict[str, str]:
    """Return a file's metadata whose entry no longer lists these modules; all else stays as it is."""
    listed = comfy_formats(metadata).keys() & modules
    if not listed:
        return dict(metadata)
    document = comfy_document(metadata)
    layers = {name: entry for name, entry in document["layers"].items() if name not in listed}
    return {**metadata, COMFY_METADATA: json.dumps({**document, "layers": layers})}


def _schemes(entry: Mapping[str, Any]) -> tuple[WeightScheme, ...]:
    groups = entry.get("config_groups")
    found = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            found.append(_scheme(group.get("format") or entry.get("format"), weights))
    # Groups with the same weights may differ in their inputs.
    return tuple(dict.fromkeys(found))


def _scheme(form: object, weights: Mapping[str, Any]) -> WeightScheme:
    bits, group, strategy = weights.get("num_bits"), weights.get("group_size"), weights.get("strategy")
    if not isinstance(group, int) or group < 1:
        group = None
    if strategy is None:
        strategy = "tensor" if group is None else "group"
    return WeightScheme(
        format=str(form),
        kind=str(weights.get("type", "int")),
        bits=bits if isinstance(bits, int) else 8,
        strategy=str(strategy),
        symmetric=weights.get("symmetric", True) is True,
        group_size=group,
        block=_block(weights.get("block_structure")),
    )


def _block(value: object) -> tuple[int, int] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    rows, columns = value
    if type(rows) is not int or type(columns) is not int or min(rows, columns) < 1:
        return None
    return rows, columns
