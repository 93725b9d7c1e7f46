"""Stacks of experts in a dense checkpoint: one tensor again, written a matrix at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol

from eckart.errors import InputError
from eckart.header import NewTensor, StoredTensor
from eckart.torch.files import WEIGHT, Contents, read_tensors
from eckart.torch.manifest import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from eckart.torch.manifest import FactoredLayer


class Layer(Protocol):
    """A layer that is read and multiplied out when it is asked for."""

    @property
    def name(self) -> str: ...
    @property
    def entry(self) -> FactoredLayer: ...
    @property
    def dtype(self) -> str: ...
    def weight(self) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class StoredStack:
    """The experts of one stack: factored layers, and dense matrices with the files that hold them."""

    name: str
    experts: tuple[Layer | tuple[Path, StoredTensor], ...]

    @property
    def _first(self) -> Layer:
        return next(each for each in self.experts if not isinstance(each, tuple))

    @property
    def new_tensor(self) -> NewTensor:
        shape, dtype = (len(self.experts), *self._first.entry.shape), self._first.dtype
        return NewTensor(self.name, dtype, shape, prod(shape) * DTYPES[dtype].itemsize)

    def weights(self) -> Iterator[Tensor]:
        """Read the matrices in their order."""
        for expert in self.experts:
            if not isinstance(expert, tuple):
                yield expert.weight()
                continue
            path, tensor = expert
            with path.open("rb") as stream:
                weight = read_tensors(stream, [tensor])[tensor.name]
            yield weight.to(DTYPES[self._first.dtype]).contiguous()


def stored_stacks(contents: Contents, layers: Mapping[str, Layer]) -> dict[str, StoredStack]:
    """Return the stack of each tensor that is a part of one; `layers` are those of tensors, by name."""
    by_name = {layer.name: layer for layer in layers.values()}
    tensors: dict[str, list[str]] = {}
    for tensor, layer in layers.items():
        tensors.setdefault(layer.name, []).append(tensor)
    dense = {
        tensor.name: (shard.path, tensor) for shard in contents.shards for tensor in shard.header.tensors
    }
    stems = {
        name.rpartition(".")[0]: layer.entry
        for name, layer in by_name.items()
        if layer.entry.experts is not None
    }
    found: dict[str, StoredStack] = {}
    for stem, entry in stems.items():
        members: list[Layer | tuple[Path, StoredTensor]] = []
        names: set[str] = set()
        for number in range(entry.experts or 0):
            name = f"{stem}.{number}"
            member = by_name.get(name)
            if member is None and name + WEIGHT not in dense:
                raise InputError(
                    f"{name} is still quantized, or missing, so it has no place in a dense stack; compress "
                    "the original so that all of its experts are factored"
                )
            members.append(dense[name + WEIGHT] if member is None else member)
            names.update(tensors.get(name, [name + WEIGHT]))
        found |= dict.fromkeys(names, StoredStack(stem + (entry.ending or ""), tuple(members)))
    return found
