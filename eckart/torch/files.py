"""What a compressed checkpoint's files hold: tensors once decoded, and which make up a factored layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from eckart.checkpoint import listed, open_checkpoint
from eckart.errors import InputError, LoadError
from eckart.header import Header, NewTensor, StoredTensor, build_header, read_header
from eckart.torch.decoders import DECODERS, Decoder
from eckart.torch.manifest import FactoredLayer, read_config, read_manifest
from eckart.torch.product import wide_product

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

WEIGHT = ".weight"
BIAS = ".bias"
MOST_MAPPED_BYTES = 64 * 2**20
LEAST_FACTORS, MOST_FACTORS = 2, 3
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Factors:
    """A factored layer of a file: its module's name there, and the sizes of the chain, input side first."""

    name: str
    entry: FactoredLayer
    sizes: tuple[int, ...]

    @property
    def matrices(self) -> tuple[str, ...]:
        """The names of the factors."""
        return factor_names(self.name, len(self.sizes) - 1)

    @property
    def bias(self) -> str:
        """The name of the bias, where there is one: that of the last factor."""
        return f"{self.name}.{len(self.sizes) - 2}{BIAS}"

    def multiply(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the weight, in float32 at least."""
        return wide_product(factors, transposed=self.entry.transposed)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its header, and what its metadata, or config.json, say of its layers; None if nothing."""

    path: Path
    header: Header
    layers: Mapping[str, FactoredLayer] | None


@dataclass(frozen=True, slots=True)
class Contents:
    """What the headers of a checkpoint's files say: its factored layers, and shapes as they are once decoded.

    `encoded` holds the decoder of each matrix that a codec stores.
    """

    shards: tuple[Shard, ...]
    shapes: Shapes
    factored: Mapping[str, Factors]
    encoded: Mapping[str, Decoder]

    @property
    def unfactored(self) -> list[str]:
        """The names of the tensors that belong to no factored layer."""
        taken = {name for factors in self.factored.values() for name in (*factors.matrices, factors.bias)}
        return [name for name in self.shapes if name not in taken]

    def check(self) -> None:
        """Open each file once, to refuse one that cannot be read before anything is changed."""
        for shard in self.shards:
            _opened(shard.path)


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
    shapes: dict[str, tuple[int, ...]] = {}
    layers: dict[str, FactoredLayer] = {}
    for shard in shards:
        own = {tensor.name: tensor.loaded_shape for tensor in shard.header.tensors}
        described = shard.layers or {}
        if twice := [name for name in own if name in shapes] + [name for name in described if name in layers]:
            raise LoadError(f"two shards, one of them {shard.path}, hold {listed(twice)}; compress it again")
        shapes |= own
        layers |= described
    encoded: dict[str, Decoder] = {}
    for name, entry in layers.items():
        encoded |= decoded_matrices(name, entry.codec, shapes)
    factored = {
        name: Factors(name, entry, factor_sizes(name, entry, shapes))
        for name, entry in layers.items()
        if name + WEIGHT not in shapes  # multiplied out: `layout: dense`
    }
    return Contents(shards, shapes, factored, encoded)


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
    decoder = DECODERS.get(entry.codec, DECODERS[None])
    return decoder.names(factor_names(name)[0])[0]


def read_tensors(stream: IO[bytes], tensors: Sequence[StoredTensor]) -> dict[str, Tensor]:
    """Read some tensors of an open file into memory of their own; a mapped file would stay in it."""
    new = [NewTensor(tensor.name, tensor.dtype, tensor.shape, tensor.size_bytes) for tensor in tensors]
    content = bytearray(build_header(new, {}))
    for tensor in tensors:
        stream.seek(tensor.start)
        content += stream.read(tensor.size_bytes)
    return load(bytes(content))


def decoded_matrices(name: str, codec: str | None, shapes: dict[str, tuple[int, ...]]) -> dict[str, Decoder]:
    """Return the decoder of each matrix of a layer; in `shapes`, it takes the place of its stored tensors."""
    decoder = DECODERS.get(codec)
    if decoder is None:
        raise LoadError(
            f"{name} is stored in the codec {codec!r}, which this version of eckart cannot read; upgrade it"
        )
    found = {}
    for matrix in (name + WEIGHT, *factor_names(name)):
        stored = decoder.names(matrix)
        present = [part for part in stored if part in shapes]
        if not present:
            continue
        if len(present) < len(stored):
            lost = listed([part for part in stored if part not in shapes])
            raise LoadError(
                f"the checkpoint lacks {lost}; the file is damaged, compress the checkpoint again"
            )
        shapes[matrix] = decoder.shape(*(shapes.pop(part) for part in stored))
        found[matrix] = decoder
    return found


def factor_names(module: str, count: int = MOST_FACTORS) -> tuple[str, ...]:
    """Return the names that a layer's factors have, input side first."""
    return tuple(f"{module}.{i}{WEIGHT}" for i in range(count))


def chain_sizes(shapes: Sequence[tuple[int, ...]], *, transposed: bool) -> tuple[int, ...] | None:
    """Return inputs, ranks and outputs of factors, input side first; None where they do not chain."""
    if not LEAST_FACTORS <= len(shapes) <= MOST_FACTORS or any(len(shape) != 2 for shape in shapes):
        return None
    turned = shapes if transposed else [shape[::-1] for shape in shapes]
    if any(first[1] != second[0] for first, second in pairwise(turned)):
        return None
    return (*(shape[0] for shape in turned), turned[-1][1])


def factor_sizes(name: str, entry: FactoredLayer, shapes: Shapes) -> tuple[int, ...]:
    """Check that the factors chain from the layer's inputs to its outputs through its rank."""
    names = factor_names(name)
    found = [shapes[factor] for factor in names if factor in shapes]
    sizes = chain_sizes(found, transposed=entry.transposed)
    ends = entry.shape if entry.transposed else entry.shape[::-1]
    fits = (
        sizes is not None
        and names[len(found) - 1] in shapes
        and (sizes[0], sizes[-1]) == ends
        and set(sizes[1:-1]) == {entry.rank}
    )
    if not fits or sizes is None:
        raise LoadError(
            f"the factors of {name} have the shapes {[list(shape) for shape in found]}, which do not make up "
            f"{list(entry.shape)} at rank {entry.rank}; the file is damaged, compress the checkpoint again"
        )
    return sizes
