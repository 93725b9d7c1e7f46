"""Put stacks of experts together again, as transformers runs them: one dense tensor for all experts."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from eckart.checkpoint import listed
from eckart.errors import LoadError
from eckart.torch.files import WEIGHT
from eckart.transformers.tensors import ADVICE, ComputedSlice, FolderTensors, Slice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eckart.torch.stored_weight import StoredWeight


# How the tensors of an expert end that is still quantized.
BLOCKS, SCALES = ".blocks", ".scales"
# How the scales of blocks end that fp8 weights are multiplied by.
SCALE_INV = ".weight_scale_inv"
_expert = re.compile(r"(?P<place>.*\.experts)\.[0-9]+\.(?P<which>.*)").fullmatch


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


def with_unit_scales(tensors: dict[str, Any], layers: Iterable[StoredWeight]) -> dict[str, Any]:
    """Give products a scale of one where other experts of their stack have scales.

    Transformers multiplies the weights of a stack by as many scales, or by none.
    """
    scaled = {_of_stack(name.removesuffix(SCALE_INV)) for name in tensors if name.endswith(SCALE_INV)}
    names = [layer.name for layer in layers if _of_stack(layer.name) in scaled - {None}]
    return {
        **tensors,
        **{name + SCALE_INV: ComputedSlice((1, 1), partial(torch.ones, 1, 1)) for name in names},
    }


def _of_stack(module: str) -> tuple[str, str] | None:
    """Return what the experts of a stack have in common: their place, and which of their weights it is."""
    found = _expert(module)
    return None if found is None else (found["place"], found["which"])


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
