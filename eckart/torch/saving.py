"""Saving a model with factored layers, so that it loads again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor, nn

from eckart.checkpoint import ENDING, listed
from eckart.errors import InputError
from eckart.header import replaced
from eckart.torch.layers import LowRank, is_intact
from eckart.torch.manifest import DTYPES, METADATA_KEY, FactoredLayer, manifest_text

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

UNKNOWN_METHOD = "factors"


def save_compressed(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a model that holds factored layers, perhaps after training, so that `load_compressed` takes it.

    A tensor that the model has under several names is stored under the first. The file is complete or not
    there.
    """
    target = Path(path)
    if target.suffix != ENDING:
        raise InputError(f"{target}: the name of the file ends in {ENDING}")
    state: dict[str, object] = dict(model.state_dict(keep_vars=True))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}
    for name, layer in layers.items():
        _check_factors(name, layer)
    entries = {name: describe(layer) for name, layer in layers.items()}
    metadata = {"format": "pt", METADATA_KEY: manifest_text(entries)}
    with replaced(target) as part:
        save_file(_stored(state), part, metadata)


def describe(layer: LowRank) -> FactoredLayer:
    """Return the entry of a layer in a file's metadata or in a folder's config.json."""
    dtype = layer.weight.dtype
    inputs, *ranks, outputs = layer.sizes
    return FactoredLayer(
        method=layer.method or UNKNOWN_METHOD,
        rank=ranks[0],
        shape=(inputs, outputs) if layer.transposed else (outputs, inputs),
        dtype=next((name for name, known in DTYPES.items() if known is dtype), None),
        transposed=layer.transposed,
    )


def _check_factors(name: str, layer: LowRank) -> None:
    """Refuse a layer that holds more than factors and a bias."""
    if not is_intact(layer):
        own = sorted(layer.state_dict(prefix=f"{name}."))
        raise InputError(
            f"{name or 'the model itself'} is no longer a chain of plain factors, it holds "
            f"{listed(own)}: merge its adapters, undo its quantization, or save the model around it"
        )


def _stored(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Return each tensor once, whole and on the CPU; memory that two of them share is copied."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    storages: set[int] = set()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name} is a {type(value).__name__}; a safetensors file holds tensors only")
        if id(value) in seen:
            continue
        seen.add(id(value))
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if address in storages else tensor
        storages.add(address)
    return stored
