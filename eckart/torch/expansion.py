"""Multiplying a compressed checkpoint out, a layer at a time, into one that every loader takes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eckart.checkpoint import ENDING, is_index, listed, open_checkpoint
from eckart.companions import CONFIG_NAME, REPORT_NAME
from eckart.errors import InputError
from eckart.header import NewTensor, StoredTensor, aligned, build_header, copy_bytes, replaced
from eckart.model_folder import ECKART_ENTRY, QUANT_METHOD, QUANTIZATION, WEIGHTS_NAME, original_name
from eckart.torch.decoders import DECODERS
from eckart.torch.expanded_card import CARD_NAME, expanded_card
from eckart.torch.expanded_stacks import StoredStack, stored_stacks
from eckart.torch.files import (
    BIAS,
    WEIGHT,
    Contents,
    Shard,
    factor_names,
    read_contents,
    read_tensors,
)
from eckart.torch.forms import Quantized, chain_sizes
from eckart.torch.manifest import DTYPES, METADATA_KEY, read_config
from eckart.torch.matrices import SCALE

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Mapping, Sequence

    from torch import Tensor

    from eckart.torch.decoders import Decoder
    from eckart.torch.manifest import FactoredLayer
    from eckart.torch.stored_weight import StoredWeight


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer whose weight is stored in a form, or in a codec: what is in which file, and how it is read.

    Transformers shards a model without regard to which tensors belong together. `matrices` are the names of
    what makes up the weight, with decoders where there are some; `stored` is None where this is dense.
    """

    name: str
    entry: FactoredLayer
    stored: StoredWeight | None
    tensors: Mapping[Path, Sequence[StoredTensor]]
    matrices: Mapping[str, Decoder]

    @property
    def dtype(self) -> str:
        """The dtype of the weight; float32 where the file names none of a weight."""
        own = (tensor.dtype for tensors in self.tensors.values() for tensor in tensors)
        named = (self.entry.weight_dtype, self.entry.dtype, *own)
        return next((name for name in named if name in DTYPES), "F32")

    def weight(self) -> Tensor:
        """Read the layer and multiply it out."""
        stored: dict[str, Tensor] = {}
        for path, tensors in self.tensors.items():
            with path.open("rb") as stream:
                stored |= read_tensors(stream, tensors)
        read = {
            matrix: decoder.decode(*(stored[part] for part in decoder.names(matrix)))
            for matrix, decoder in self.matrices.items()
        }
        weight = self.stored.weight(read.__getitem__) if self.stored else read[self.name + WEIGHT]
        return weight.to(DTYPES[self.dtype]).contiguous()


# What PEFT, or a difference job, writes beside an adapter.
ADAPTER_CONFIG_NAME = "adapter_config.json"
# Whose `quantization_config` a result has in which all is integers without factors.
COMPRESSED_TENSORS = "compressed-tensors"
Parts = dict[NewTensor, StoredTensor | StoredLayer | StoredStack]


def expand(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Path]:
    """Write the dense checkpoint of a compressed one, with its old names, shapes and dtypes.

    A file becomes a file, of the name `out` or in the folder `out`; an index or a folder becomes a folder,
    with the same shards and a new index. Weights of a model's folder get their first name back, and its other
    files come along, but for `report.json`, which describes the compressed files; `config.json` and the model
    card say what the folder is now. Memory holds one layer at a time. Returns the files, those of weights
    first.
    """
    source, target = Path(path), Path(out)
    index, contents = open_checkpoint(source).index, read_contents(source)
    shards = contents.shards
    if not any(shard.layers for shard in shards):
        raise _no_layers(source, contents)
    into_file = target.suffix == ENDING and index is None and not source.is_dir()
    if target.exists() and (into_file or not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there already; name another file, or a new or empty folder")
    folder = target.parent if into_file else target
    contents.check()
    parts = _parts(contents)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[Path, Parts] = {}
    for shard, own in zip(shards, parts, strict=True):
        if own:  # Nothing is left of a file whose factors all belong to layers of others.
            file = target if into_file else folder / original_name(shard.path)
            _write(shard, own, file)
            files[file] = own
    written = list(files)
    if index is not None:
        new_index = folder / original_name(index)
        _write_bytes(new_index, _json(_index(files)))
        written.append(new_index)
    methods = _methods(contents, files)
    return written + (_copy_others(source, folder, methods) if source.is_dir() else [])


def _no_layers(source: Path, contents: Contents) -> InputError:
    """Say why there is nothing to multiply out, and what to do where there may be factors all the same."""
    folder = source if source.is_dir() else source.parent
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        return InputError(
            f"{folder} is an adapter, which changes the weights of a base; to have dense weights, merge it "
            "by PEFT: PeftModel.from_pretrained(base, folder).merge_and_unload()"
        )
    if source != folder and read_config(folder):
        return InputError(
            f"the metadata of {source} list no factored layers, but the config.json beside it does; give "
            f"their folder, {folder}"
        )
    if factors := _possible_factors(contents):
        return InputError(
            f"nothing says which layers of {source} are factored, but {listed(factors)} look like factors. "
            "If they are, load_compressed(model, path, dequantize=True) multiplies them out in their model, "
            "which you can then save"
        )
    return InputError(f"{source} holds no factored layers, so there is nothing to multiply out")


def _possible_factors(contents: Contents) -> list[str]:
    """Return what could be factors by their names and shapes."""
    found = []
    for first in contents.shapes:
        module = first.removesuffix(f".0{WEIGHT}")
        if module == first or module + WEIGHT in contents.shapes:
            continue
        names = [name for name in factor_names(module) if name in contents.shapes]
        factors = [contents.shapes[name] for name in names]
        chains = [chain_sizes(factors, transposed=transposed) for transposed in (False, True)]
        # Factors of more parameters than their product would not have been stored.
        if any(sizes and sum(map(prod, factors)) < sizes[0] * sizes[-1] for sizes in chains):
            found += names
    return found


def _parts(contents: Contents) -> list[Parts]:
    """Say what each file becomes: each layer's weight where its first tensor was, all else as it is.

    A bias may be in another file than its factors.
    """
    biases = {layer.bias: name + BIAS for name, layer in contents.factored.items()}
    layers = _stored_layers(contents)
    stacks = stored_stacks(contents, layers)
    done: set[str] = set()
    found: list[Parts] = []
    for shard in contents.shards:
        parts: Parts = {}
        for tensor in shard.header.tensors:
            layer, stack = layers.get(tensor.name), stacks.get(tensor.name)
            if stack is not None:
                if stack.name not in done:
                    done.add(stack.name)
                    parts[stack.new_tensor] = stack
            elif layer is None:
                name = biases.get(tensor.name, tensor.name)
                parts[NewTensor(name, tensor.dtype, tensor.shape, tensor.size_bytes)] = tensor
            elif layer.name not in done:
                done.add(layer.name)
                size_bytes = prod(layer.entry.shape) * DTYPES[layer.dtype].itemsize
                parts[NewTensor(layer.name + WEIGHT, layer.dtype, layer.entry.shape, size_bytes)] = layer
        found.append(parts)
    return found


def _stored_layers(contents: Contents) -> dict[str, StoredLayer]:
    """Return the layer of each tensor that is a part of one."""
    stored = {
        tensor.name: (shard.path, tensor) for shard in contents.shards for tensor in shard.header.tensors
    }
    found: dict[str, StoredLayer] = {}
    for name, entry in (pair for shard in contents.shards for pair in (shard.layers or {}).items()):
        layer = contents.factored.get(name)
        own = layer.tensors.values() if layer else (name + WEIGHT,)
        matrices = {matrix: contents.encoded.get(matrix, DECODERS[None]) for matrix in own}
        names = [part for matrix, decoder in matrices.items() for part in decoder.names(matrix)]
        tensors: dict[Path, list[StoredTensor]] = {}
        for path, tensor in (stored[part] for part in names):
            tensors.setdefault(path, []).append(tensor)
        found |= dict.fromkeys(names, StoredLayer(name, entry, layer, tensors, matrices))
    return found


def _write(shard: Shard, parts: Parts, path: Path) -> None:
    tensors = aligned(parts)
    metadata = {key: text for key, text in shard.header.metadata.items() if key != METADATA_KEY}
    with replaced(path) as new, shard.path.open("rb") as source, new.open("wb") as target:
        target.write(build_header(tensors, metadata | {"format": "pt"}))
        for tensor in tensors:
            part = parts[tensor]
            if isinstance(part, StoredTensor):
                copy_bytes(part, source, target)
            else:
                weights = part.weights() if isinstance(part, StoredStack) else (part.weight(),)
                for weight in weights:
                    target.write(weight.view(torch.uint8).numpy().data)


def _index(files: Mapping[Path, Parts]) -> dict[str, Any]:
    total = sum(tensor.size_bytes for own in files.values() for tensor in own)
    weight_map = {tensor.name: file.name for file, own in files.items() for tensor in own}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _methods(contents: Contents, files: Mapping[Path, Parts]) -> set[str]:
    """Return the methods of a `quantization_config` that no longer holds.

    Of integers alone the service writes that of compressed-tensors; it holds while other integers are left.
    """
    integers = any(isinstance(layer.form, Quantized) for layer in contents.factored.values())
    left = any(tensor.name.endswith(WEIGHT + SCALE) for own in files.values() for tensor in own)
    return {QUANT_METHOD, *([COMPRESSED_TENSORS] if integers and not left else [])}


def _copy_others(source: Path, folder: Path, methods: Collection[str]) -> list[Path]:
    """Copy the files that are no weights; hidden ones and the report are left out."""
    copied = []
    for path in sorted(source.iterdir()):
        target = folder / path.name
        is_weights = path.suffix == ENDING or is_index(path.name)
        if is_weights or path.name.startswith(".") or path.name == REPORT_NAME:
            continue
        if path.is_dir():
            shutil.copytree(path, target)
        elif (content := _changed(path, methods)) is not None:
            _write_bytes(target, content)
        else:
            shutil.copy(path, target)
        copied.append(target)
    return copied


def _changed(path: Path, methods: Collection[str]) -> bytes | None:
    """Return a file that says how the folder is loaded as it is without compression; None for any other."""
    if path.name == CONFIG_NAME:
        return _dense_config(path, methods)
    return expanded_card(path.read_bytes()) if path.name.lower() == CARD_NAME else None


def _dense_config(path: Path, methods: Collection[str]) -> bytes | None:
    try:
        config = json.loads(path.read_bytes())
        own = config.get(QUANTIZATION) or {}
        if own.get("quant_method") in methods:
            del config[QUANTIZATION]
        config.pop(ECKART_ENTRY, None)
        if not (path.parent / (config.get(WEIGHTS_NAME) or "")).is_file():
            config.pop(WEIGHTS_NAME, None)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return None
    return _json(config)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"


def _write_bytes(path: Path, content: bytes) -> None:
    with replaced(path) as part:
        part.write_bytes(content)
