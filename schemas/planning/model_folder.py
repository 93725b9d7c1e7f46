"""A result that is a model's folder: the names of its weights, and what its config.json says of them.

Stock transformers fills weights that it does not find with random numbers, and only warns. So the weights of
a factored model lie under a name that it does not look for, and config.json names a file that does not exist:
it fails, and its message says what to import. `eckart.transformers` finds the weights.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from schemas.format.companion import CONFIG_NAME, MODULES_NAME, parse_config
from schemas.format.encodings.quantization import COMPRESSED_TENSORS, FP8, MXFP4, QUANTIZATION
from schemas.format.errors import quoted
from schemas.format.files import CheckpointFiles
from schemas.format.metadata import FactoredLayer
from schemas.format.model_config import (
    ECKART_ENTRY,
    ORIGINAL_WEIGHTS,
    QUANT_METHOD,
    own_entry,
    quantization_config,
)
from schemas.format.names import INDEX_ENDING, MAX_NAME_CHARACTERS, SHARD
from schemas.planning.compressed_tensors import common_quantizer, compressed_tensors_config
from schemas.planning.layer import LayerPlan

EXPERT = re.compile(r"\.experts\.([0-9]+\.|\w+\.[0-9]+$)")
DENSE_EXPERTS = (
    " Transformers 5 stacks experts into one tensor, so it runs them dense: in memory they are as large as "
    "in the input."
)
INSTALL = "pip install compressed-tensors"
ENTRY_STEM = "eckart"
ENDING = ".safetensors"
SHARD_PREFIX = "eckart_"
# The methods of other weights beside which eckart.transformers loads factors.
LOADED_METHODS = (FP8, COMPRESSED_TENSORS, MXFP4)
MISSING_WEIGHTS = "import-eckart.transformers-first.safetensors"


def output_names(
    files: CheckpointFiles, layers: Sequence[LayerPlan], ranks: Mapping[int, int]
) -> dict[str, str]:
    """Return the output file's name for each weight file and the index.

    `ranks` holds the rank of each factored layer by its number, which is its index in `layers`.
    """
    names = {name: name for name in (*files.headers, *([files.index_name] if files.index_name else []))}
    if CONFIG_NAME not in files.companions or not _is_factored(files, layers, ranks):
        return names
    # What is in the format of others alone keeps the names they look for. But sentence-transformers calls
    # a part of the model, and integers are decoded once the whole is called.
    is_sentence_model = MODULES_NAME in files.companions
    is_known = not (files.factored or has_other_method(files.config) or is_sentence_model)
    if is_known and common_quantizer(files.config, layers, ranks) is not None:
        return names
    if files.index_name is None:
        return dict.fromkeys(names, ENTRY_STEM + ENDING)
    renamed = {name: _shard_name(name) for name in files.headers}
    return {**renamed, files.index_name: ENTRY_STEM + INDEX_ENDING}


def _is_factored(files: CheckpointFiles, layers: Sequence[LayerPlan], ranks: Mapping[int, int]) -> bool:
    """Whether the output has a layer that a reader must know as factored; the input may have had one."""
    factored = (layers[number] for number in ranks)
    return bool(files.factored) or any(layer.in_metadata for layer in factored)


def _shard_name(name: str) -> str:
    """Rename a shard that has the name of a whole file, such as model.safetensors."""
    if SHARD.fullmatch(name) or len(SHARD_PREFIX + name) > MAX_NAME_CHARACTERS:
        return name
    return SHARD_PREFIX + name


def has_plain_names(output: CheckpointFiles) -> bool:
    """Whether the weights of a folder have names that all programs look for; see :func:`output_names`."""
    return output.entry_name not in (ENTRY_STEM + ENDING, ENTRY_STEM + INDEX_ENDING)


def folder_config(
    raw: bytes, layers: Mapping[str, FactoredLayer], weights: str, output: CheckpointFiles
) -> tuple[bytes, str | None]:
    """Return the config.json of a folder with these factored layers, and a warning where it needs one.

    `weights` is the name of the input's index or weight file. All other keys stay as they are, in their
    order.
    """
    config = parse_config(raw)
    warning = None
    if has_plain_names(output):
        config[QUANTIZATION] = compressed_tensors_config(config, layers, output.tensors)
        return json.dumps(config, indent=2).encode() + b"\n", None
    if has_other_method(config):
        config[ECKART_ENTRY] = own_entry(layers, original_weights(config, weights))
    if has_other_method(config) and not is_loadable(config):
        method = quoted(str(_quant_method(config)))
        warning = (
            f"config.json keeps its own quantization_config, {method}, so transformers "
            "cannot load this folder: use eckart.torch.load_compressed, or ask for layout dense."
        )
    elif not has_other_method(config):
        config[QUANTIZATION] = quantization_config(layers, original_weights(config, weights))
    config["transformers_weights"] = MISSING_WEIGHTS
    return json.dumps(config, indent=2).encode() + b"\n", warning


def how_to_load(
    layers: Collection[str], *, in_folder: bool, is_adapter: bool = False, is_plain: bool = False
) -> str | None:
    """Say how a result with these factored layers is loaded, and how not; a dense one needs no word."""
    if is_adapter:
        return (
            "Load the base by the class whose names the checkpoint has, and then this folder with "
            "peft.PeftModel.from_pretrained(base, folder). PEFT warns of missing keys if the class has other "
            "names."
        )
    if not layers:
        return None
    if is_plain:
        return (
            "from_pretrained of transformers loads this folder without Eckart; it needs the package "
            f"compressed-tensors: {INSTALL}."
        )
    if in_folder:
        experts = DENSE_EXPERTS if any(EXPERT.search(name) for name in layers) else ""
        return (
            "README.md has the lines that load this folder. Without its import, from_pretrained refuses the "
            f"folder; never rename the weights for it.{experts}"
        )
    return (
        "Load it with eckart.torch.load_compressed. Never put a config.json beside it for from_pretrained, "
        "which would fill the factored layers with random numbers: send the model's whole folder, or ask for "
        "layout dense."
    )


def has_other_method(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that the model is quantized in a way of its own."""
    return config.get(QUANTIZATION) is not None and _quant_method(config) != QUANT_METHOD


def is_loadable(config: Mapping[str, Any]) -> bool:
    """Whether eckart.transformers loads factors beside weights that are quantized as config.json says."""
    return not has_other_method(config) or _quant_method(config) in LOADED_METHODS


def _quant_method(config: Mapping[str, Any]) -> object:
    quantization = config[QUANTIZATION]
    return quantization.get("quant_method") if isinstance(quantization, dict) else None


def original_weights(config: Mapping[str, Any], weights: str) -> str | None:
    """Return the first name of the weights; of a model that was compressed before, config.json has it."""
    if weights not in (ENTRY_STEM + ENDING, ENTRY_STEM + INDEX_ENDING):
        return weights
    entries = (config.get(QUANTIZATION), config.get(ECKART_ENTRY))
    found = [entry.get(ORIGINAL_WEIGHTS) for entry in entries if isinstance(entry, dict)]
    return next((name for name in found if isinstance(name, str)), None)
