"""What a compressed checkpoint's files hold: tensors once decoded, and which make up a factored layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from eckart.checkpoint import listed, open_checkpoint
from eckart.errors import InputError, LoadError
from eckart.header import Header, NewTensor, StoredTensor, build_header, read_header
from eckart.torch.decoders import DECODERS, Decoder
from eckart.torch.forms import INT8, MOST_FACTORS, factor_name
from eckart.torch.manifest import FactoredLayer, read_config, read_manifest
from eckart.torch.stored_weight import (
    DAMAGED,
    Found,
    StoredWeight,
    first_tensor,
    is_quantized,
    stored_weight,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

WEIGHT = ".weight"
BIAS = ".bias"
MOST_MAPPED_BYTES = 64 * 2**20
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its header, and what its metadata, or config.json, say of its layers; None if nothing."""

    path: Path
    header: Header
    layers: Mapping[str, FactoredLayer] | None


@dataclass(frozen=True, slots=True)
class Contents:
    """What the headers of a checkpoint's files say: its compressed layers, and shapes.

    `encoded` holds the decoder of each matrix that is decoded when it is read; the shape is the matrix's.
    """

    shards: tuple[Shard, ...]
    shapes: Shapes
    dtypes: Mapping[str, str | None]
    factored: Mapping[str, StoredWeight]
    encoded: Mapping[str, Decoder]

    @property
    def unfactored(self) -> list[str]:
        """The names of the tensors that belong to no compressed layer."""
        taken = {name for layer in self.factored.values() for name in (*layer.tensors.values(), layer.bias)}
        return [name for name in self.shapes if name not in taken]

    def check(self) -> None:
        """Open each file, and read what could lie, to refuse it before anything is changed."""
        for shard in self.shards:
            _opened(shard.path)
        reader = TensorReader(self)
        for layer in self.factored.values():
            layer.check_values(reader.read)


class TensorReader:
    """Reads tensors of a checkpoint by name, and decodes those that a codec stores.

    What is read stays in mapped memory as long as its file is open, so files are opened anew now and then.
    """

    def __init__(self, contents: Contents) -> None:
        self._encoded = contents.encoded
        self._stored = {
            tensor.name: (shard.path, tensor.size_bytes)
            for shard in contents.shards
            for tensor in shard.header.tensors
        }
        self._open: dict[Path, Any] = {}
        self._mapped_bytes = 0

    def read(self, name: str) -> Tensor:
        """Read a tensor as it is once decoded."""
        decoder = self._encoded.get(name)
        if decoder is None:
            return self._read(name)
        return decoder.decode(*(self._read(part) for part in decoder.names(name)))

    def _read(self, name: str) -> Tensor:
        path, size_bytes = self._stored[name]
        if self._mapped_bytes > MOST_MAPPED_BYTES:
            self._open.clear()
            self._mapped_bytes = 0
        if path not in self._open:
            self._open[path] = _opened(path)
        self._mapped_bytes += size_bytes
        tensor: Tensor = self._open[path].get_tensor(name)
        return tensor


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise InputError(f"{path}: {error}") from error


def read_contents(path: Path) -> Contents:
    """Read names, shapes and factored layers; each shard describes only its own."""
    shards = _with_layers(
        tuple(_read_shard(shard) for shard in open_checkpoint(path).shards),
        read_config(path) if path.is_dir() else {},
    )
    found: dict[str, Found] = {}
    layers: dict[str, FactoredLayer] = {}
    for shard in shards:
        own = {tensor.name: Found(tensor.loaded_shape, tensor.dtype) for tensor in shard.header.tensors}
        described = shard.layers or {}
        if twice := [name for name in own if name in found] + [name for name in described if name in layers]:
            raise LoadError(f"two shards, one of them {shard.path}, hold {listed(twice)}; compress it again")
        found |= own
        layers |= described
    encoded, factored = read_layers(layers, found)
    return Contents(
        shards,
        {name: kind.shape for name, kind in found.items()},
        {name: kind.dtype for name, kind in found.items()},
        factored,
        encoded,
    )


def read_layers(
    layers: Mapping[str, FactoredLayer], found: dict[str, Found]
) -> tuple[dict[str, Decoder], dict[str, StoredWeight]]:
    """Return the decoders of matrices, and the weights that are not dense; `found` gets what is decoded."""
    encoded: dict[str, Decoder] = {}
    factored = {}
    for name, entry in layers.items():
        encoded |= decoded_matrices(name, entry, found)
        if (layer := stored_weight(name, entry, found)) is not None:
            factored[name] = layer
    return encoded, factored


def _read_shard(path: Path) -> Shard:
    """Read what one file holds."""
    header = read_header(path)
    return Shard(path, header, read_manifest(path, header.metadata))


def _with_layers(shards: tuple[Shard, ...], from_config: Mapping[str, FactoredLayer]) -> tuple[Shard, ...]:
    """Add the layers that only config.json lists to the file that holds their first factor."""
    if not from_config:
        return shards
    names = [{tensor.name for tensor in shard.header.tensors} for shard in shards]
    stored = set().union(*names, *(shard.layers or () for shard in shards))
    unlisted = {
        _first_tensor(name, entry): (name, entry)
        for name, entry in from_config.items()
        if stored.isdisjoint({name, name + WEIGHT})
    }
    return tuple(
        replace(
            shard, layers={**(shard.layers or {}), **dict(unlisted[first] for first in own & unlisted.keys())}
        )
        for shard, own in zip(shards, names, strict=True)
    )


def _first_tensor(name: str, entry: FactoredLayer) -> str:
    decoder = DECODERS[None if is_quantized(entry) or entry.codec not in DECODERS else entry.codec]
    return decoder.names(first_tensor(name, entry))[0]


def read_tensors(stream: IO[bytes], tensors: Sequence[StoredTensor]) -> dict[str, Tensor]:
    """Read some tensors of an open file into memory of their own; a mapped file would stay in it."""
    new = [NewTensor(tensor.name, tensor.dtype, tensor.shape, tensor.size_bytes) for tensor in tensors]
    content = bytearray(build_header(new, {}))
    for tensor in tensors:
        stream.seek(tensor.start)
        content += stream.read(tensor.size_bytes)
    return load(bytes(content))


def decoded_matrices(name: str, entry: FactoredLayer, found: dict[str, Found]) -> dict[str, Decoder]:
    """Return the decoder of each matrix of a layer; in `found`, it takes the place of its stored tensors.

    Factors of int8 are not decoded, since layers run them as they are.
    """
    decoder = DECODERS.get(entry.codec)
    if decoder is None:
        raise LoadError(
            f"{name} is stored in the codec {entry.codec!r}, which this version of eckart cannot read; "
            "upgrade it"
        )
    factors = factor_names(name)
    runs = entry.codec is None or (entry.codec == INT8 and not found.keys().isdisjoint(factors))
    decoders = {}
    for matrix in () if runs else factors if entry.bits else (name + WEIGHT, *factors):
        stored = decoder.names(matrix)
        present = [part for part in stored if part in found]
        if not present:
            continue
        if len(present) < len(stored):
            lost = listed([part for part in stored if part not in found])
            raise LoadError(f"the checkpoint lacks {lost}; {DAMAGED}")
        shape = decoder.shape(*(found.pop(part).shape for part in stored))
        found[matrix] = Found(shape, None)
        decoders[matrix] = decoder
    return decoders


def factor_names(module: str, count: int = MOST_FACTORS) -> tuple[str, ...]:
    """Return the names that a layer's factors have, input side first."""
    return tuple(f"{module}.{factor_name(number)}" for number in range(count))
