"""Put stacks of experts together again, as transformers runs them: one dense tensor for all experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.checkpoint import listed
from eckart.errors import LoadError
from eckart.torch.files import WEIGHT
from eckart.transformers.tensors import ADVICE, ComputedSlice, FolderTensors, Slice

if TYPE_CHECKING:
    import torch

    from eckart.torch.stored_weight import StoredWeight


# How the tensors of an expert end that is still quantized.
BLOCKS, SCALES = ".blocks", ".scales"


def with_stacks(folder: FolderTensors) -> tuple[FolderTensors, list[str]]:
    """Return the tensors with each stack in place of its experts, computed when it is read, and the names."""
    entries = {
        layer.name.rpartition(".")[0]: layer.entry
        for layer in folder.layers
        if layer.entry.experts is not None
    }
    if not entries:
        return folder, []
    layers = {layer.name: layer for layer in folder.layers}
    tensors = dict(folder.tensors)
    for stem, entry in entries.items():
        numbers = range(entry.experts or 0)
        matrices = [_take(f"{stem}.{number}", layers, tensors, folder) for number in numbers]
        tensors[stem + (entry.ending or "")] = _stacked(stem, matrices)
    return FolderTensors(tensors, tuple(layers.values())), list(entries)


def _take(
    name: str, layers: dict[str, StoredWeight], tensors: dict[str, Slice], folder: FolderTensors
) -> Slice:
    """Return the matrix of an expert, factored or dense, and take its tensors away."""
    layer = layers.pop(name, None)
    if layer is not None:
        for stored in layer.tensors.values():
            del tensors[stored]
        return folder.multiplied_out(layer)
    if name + BLOCKS in tensors and name + SCALES in tensors:
        return _decoded(tensors.pop(name + BLOCKS), tensors.pop(name + SCALES))
    if name + WEIGHT not in tensors:
        raise LoadError(f"the files lack {name}, one of the experts of a stack; {ADVICE}")
    return tensors.pop(name + WEIGHT)


def _decoded(blocks: Slice, scales: Slice) -> ComputedSlice:
    """Return the matrix of an expert that is still quantized as MXFP4."""
    outputs, groups, pairs = blocks.get_shape()

    def compute() -> torch.Tensor:
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        stack: torch.Tensor = convert_moe_packed_tensors(blocks[...].unsqueeze(0), scales[...].unsqueeze(0))
        return stack[0]

    return ComputedSlice((2 * groups * pairs, outputs), compute)


def _stacked(name: str, matrices: list[Slice]) -> ComputedSlice:
    shapes = {tuple(each.get_shape()) for each in matrices}
    if len(shapes) != 1:
        raise LoadError(
            f"the experts of {name} have several shapes: {listed(sorted(map(str, shapes)))}; {ADVICE}"
        )
    (shape,) = shapes

    def compute() -> torch.Tensor:
        first = matrices[0][...]
        stack = first.new_empty(len(matrices), *shape)
        stack[0] = first
        for number, matrix in enumerate(matrices[1:], start=1):
            stack[number] = matrix[...]
        return stack

    return ComputedSlice((len(matrices), *shape), compute)
