"""The tensors of a compressed folder, unread, in the form in which transformers reads slices of a file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError, safe_open

from eckart.checkpoint import listed
from eckart.errors import InputError, LoadError
from eckart.torch.files import WEIGHT, Factors, decoded_matrices, factor_sizes
from eckart.torch.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import ExitStack

    from torch import Tensor

    from eckart.torch.decoders import Decoder
    from eckart.torch.manifest import FactoredLayer

ADVICE = "the folder is damaged or mixes two results; fetch all of its files again"


class Slice(Protocol):
    """What transformers calls on a slice of a file, and on a tensor."""

    def __getitem__(self, index: Any) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class ComputedSlice:
    """A tensor that is computed when it is read."""

    shape: tuple[int, ...]
    compute: Callable[[], Tensor]

    def __getitem__(self, index: Any) -> Tensor:
        """Compute it, and return a part."""
        return self.compute()[index]

    def get_shape(self) -> list[int]:
        """Return its shape."""
        return list(self.shape)


@dataclass(frozen=True, slots=True)
class FolderTensors:
    """All tensors of a folder's files by their names there, once decoded, and its factored layers."""

    tensors: dict[str, Slice]
    layers: tuple[Factors, ...]

    def multiplied_out(self, layer: Factors) -> ComputedSlice:
        """Return a layer's weight, as wide as its factors are."""

        def compute() -> Tensor:
            factors = [self.tensors[name][...] for name in layer.matrices]
            return layer.multiply(factors).to(factors[0].dtype)

        return ComputedSlice(layer.entry.shape, compute)


def open_folder(
    opened: ExitStack, files: Iterable[str], layers: Mapping[str, FactoredLayer]
) -> FolderTensors:
    """Open the files of a folder whose config.json lists these layers."""
    tensors: dict[str, Slice] = {}
    in_files: set[str] = set()
    for path in files:
        try:
            file = opened.enter_context(safe_open(path, "pt"))
            tensors |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise InputError(f"{path}: {error}; fetch the file again") from error
        in_files |= (read_manifest(Path(path), file.metadata() or {}) or {}).keys()
    return find_layers(tensors, layers, in_files)


def find_layers(
    stored: Mapping[str, Any], layers: Mapping[str, FactoredLayer], in_files: Iterable[str] = ()
) -> FolderTensors:
    """Check that the tensors hold each of these layers, and all that the files' own metadata list."""
    unlisted = [name for name in in_files if name not in layers and name + WEIGHT not in stored]
    if unlisted:
        raise LoadError(
            f"config.json lacks factored layers of the files: {listed(sorted(unlisted))}; {ADVICE}"
        )
    tensors = dict(stored)
    shapes = {name: _shape(tensor) for name, tensor in tensors.items()}
    found = []
    for name, entry in layers.items():
        for matrix, decoder in decoded_matrices(name, entry.codec, shapes).items():
            parts = [tensors.pop(part) for part in decoder.names(matrix)]
            tensors[matrix] = ComputedSlice(shapes[matrix], partial(_decode, decoder, parts))
        if name + WEIGHT in shapes:
            raise LoadError(
                f"config.json says that {name} is factored, but the files hold it dense; {ADVICE}"
            )
        found.append(Factors(name, entry, factor_sizes(name, entry, shapes)))
    return FolderTensors(tensors, tuple(found))


def _decode(decoder: Decoder, parts: Iterable[Slice]) -> Tensor:
    return decoder.decode(*(part[...] for part in parts))


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)
