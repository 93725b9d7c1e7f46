"""What only a compressed model's folder has: names of its weights, and entries of its config.json."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from eckart.checkpoint import FILE_NAME, is_index
from eckart.companions import CONFIG_NAME

if TYPE_CHECKING:
    from pathlib import Path

QUANTIZATION = "quantization_config"
QUANT_METHOD = "eckart"
# Our entry where QUANTIZATION says how those weights are quantized that are not factored.
ECKART_ENTRY = "eckart"
# The weights have names that transformers does not look for, instead of these.
USUAL_NAMES = {
    "eckart.safetensors": "model.safetensors",
    "eckart.safetensors.index.json": "model.safetensors.index.json",
}
# The entry in QUANTIZATION that says how the weights were called before.
ORIGINAL_WEIGHTS = "original_weights"
# What the weights of a diffusers model are called; its config.json names its class.
DIFFUSERS_CLASS, DIFFUSERS_STEM = "_class_name", "diffusion_pytorch_model"
# The entry of config.json that names the weights: here a file that does not exist. Without
# `import eckart.transformers`, transformers fails and shows its name.
WEIGHTS_NAME = "transformers_weights"
MISSING_WEIGHTS = "import-eckart.transformers-first.safetensors"


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json; without entries where it is missing or not readable."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def own_entry(config: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of config.json that lists factored layers; empty where it lists none."""
    entry = config.get(QUANTIZATION)
    if not isinstance(entry, dict) or entry.get("quant_method") != QUANT_METHOD:
        entry = config.get(ECKART_ENTRY)
    return entry if isinstance(entry, dict) else {}


def original_name(entry: Path) -> str:
    """Return the name that a folder's weight file or index had before it was compressed.

    config.json remembers it, or says of which library the model is.
    """
    usual = USUAL_NAMES.get(entry.name)
    if usual is None:
        return entry.name
    config = read_config(entry.parent)
    name = own_entry(config).get(ORIGINAL_WEIGHTS)
    if isinstance(name, str) and FILE_NAME.fullmatch(name) and is_index(name) == is_index(usual):
        return name
    return usual.replace("model", DIFFUSERS_STEM, 1) if DIFFUSERS_CLASS in config else usual
