"""Saving a model with factored layers, so that it loads again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor, nn

from eckart.checkpoint import ENDING, listed
from eckart.errors import InputError
from eckart.header import replaced
from eckart.torch.forms import INT8, Factors, Pivot, Quantized
from eckart.torch.layers import Compressed
from eckart.torch.manifest import DTYPES, METADATA_KEY, FactoredLayer, manifest_text
from eckart.torch.matrices import PackedMatrix

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

UNKNOWN_METHOD = "factors"


def save_compressed(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a model that holds compressed layers, perhaps after training, so that `load_compressed` takes it.

    A tensor that the model has under several names is stored under the first. The file is complete or not
    there.
    """
    target = Path(path)
    if target.suffix != ENDING:
        raise InputError(f"{target}: the name of the file ends in {ENDING}")
    state: dict[str, object] = dict(model.state_dict(keep_vars=True))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Compressed)}
    for name, layer in layers.items():
        _check_factors(name, layer)
    entries = {name: describe(layer) for name, layer in layers.items()}
    metadata = {"format": "pt", METADATA_KEY: manifest_text(entries)}
    with replaced(target) as part:
        save_file(_stored(state), part, metadata)


def describe(layer: Compressed) -> FactoredLayer:
    """Return the entry of a layer in a file's metadata or in a folder's config.json."""
    form, dtype = layer.form, layer.weight.dtype
    weight_dtype = next((name for name, known in DTYPES.items() if known is dtype), None)
    matrix = form.matrix if isinstance(form, Quantized) else None
    factors = form.factors if isinstance(form, Quantized | Pivot) else form
    is_int8 = isinstance(factors, Factors) and factors.codec == INT8
    bits = 8 if matrix else None
    return FactoredLayer(
        method=layer.method or UNKNOWN_METHOD,
        rank=form.rank,
        shape=form.shape,
        dtype="I8" if is_int8 else weight_dtype,
        weight_dtype=weight_dtype if is_int8 else None,
        codec=INT8 if is_int8 else None,
        bits=matrix.bits if isinstance(matrix, PackedMatrix) else bits,
        group=matrix.group if isinstance(matrix, PackedMatrix) else None,
        transposed=layer.transposed,
    )


def _check_factors(name: str, layer: Compressed) -> None:
    """Refuse a layer that holds more than factors and a bias."""
    if not layer.is_intact():
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
