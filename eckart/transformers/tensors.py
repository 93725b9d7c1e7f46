"""The tensors of a compressed folder, unread, in the form in which transformers reads slices of a file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError, safe_open

from eckart.checkpoint import listed
from eckart.errors import InputError, LoadError
from eckart.torch.files import WEIGHT, read_layers
from eckart.torch.manifest import DTYPES, read_manifest
from eckart.torch.matrices import INTEGERS
from eckart.torch.stored_weight import Found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import ExitStack

    from torch import Tensor

    from eckart.torch.decoders import Decoder
    from eckart.torch.manifest import FactoredLayer
    from eckart.torch.stored_weight import StoredWeight

ALL_DTYPES = {**DTYPES, **INTEGERS}
ADVICE = "the folder is damaged or mixes two results; fetch all of its files again"


class Slice(Protocol):
    """What transformers calls on a slice of a file, and on a tensor."""

    def __getitem__(self, index: Any) -> Tensor: ...
    def get_shape(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class ComputedSlice:
    """A tensor that is computed when it is read."""

    shape: tuple[int, ...]
    compute: Callable[[], Tensor]
    dtype: str = "F32"

    def __getitem__(self, index: Any) -> Tensor:
        """Compute it, and return a part."""
        return self.compute()[index]

    def get_shape(self) -> list[int]:
        """Return its shape."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """Return the name that files have for its dtype, or for another one of floats."""
        return self.dtype


@dataclass(frozen=True, slots=True)
class FolderTensors:
    """All tensors of a folder's files by their names there, once decoded, and its factored layers."""

    tensors: dict[str, Slice]
    layers: tuple[StoredWeight, ...]

    def multiplied_out(self, layer: StoredWeight) -> ComputedSlice:
        """Return a layer's weight, in the dtype of its factors or scales."""

        def compute() -> Tensor:
            stored = {name: self.tensors[name][...] for name in layer.tensors.values()}
            dtype = next(tensor.dtype for tensor in stored.values() if tensor.is_floating_point())
            return layer.weight(stored.__getitem__).to(dtype)

        return ComputedSlice(layer.form.shape, compute)


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
    found = {name: Found(_shape(tensor), _dtype(tensor)) for name, tensor in tensors.items()}
    decoders, weights = read_layers(layers, found)
    for matrix, decoder in decoders.items():
        parts = [tensors.pop(part) for part in decoder.names(matrix)]
        tensors[matrix] = ComputedSlice(found[matrix].shape, partial(_decode, decoder, parts))
    for name in layers:
        if name + WEIGHT in decoders:
            continue  # A dense weight in a codec.
        if name not in weights:
            raise LoadError(
                f"config.json says that {name} is factored, but the files hold it dense; {ADVICE}"
            )
        weights[name].check_values(lambda tensor: tensors[tensor][...])
    return FolderTensors(tensors, tuple(weights.values()))


def _decode(decoder: Decoder, parts: Iterable[Slice]) -> Tensor:
    return decoder.decode(*(part[...] for part in parts))


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)


def _dtype(tensor: Any) -> str | None:
    """Return the name of a dtype as files have it, of a slice of a file or of a tensor."""
    if hasattr(tensor, "get_dtype"):
        return str(tensor.get_dtype())
    return next((name for name, dtype in ALL_DTYPES.items() if tensor.dtype is dtype), None)
