"""Statistics files: the tensors that say what is known of each layer's inputs and gradients."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from eckart.header import NewTensor, aligned, build_header, replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

GRAM, MEAN, COUNT, GRAD_GRAM = ".gram", ".mean", ".count", ".grad_gram"
# What layers with the same inputs share; gradients are always a layer's own.
SHARED = (GRAM, MEAN, COUNT)
SAME_AS, KIND = "same_as", "kind"
CODES = {"float32": "F32", "float64": "F64"}
SIZES = {"F32": 4, "F64": 8}
COUNT_DTYPE = "F64"


def tensors_of(
    inputs: Mapping[str, int], outputs: Mapping[str, int], same_as: Mapping[str, str], dtype: str
) -> list[NewTensor]:
    """List the tensors of layers that have so many inputs and, where gradients are known, so many outputs."""
    code = CODES[dtype]
    tensors = []
    for name, n in inputs.items():
        if name not in same_as:
            tensors += [
                new_tensor(name + GRAM, code, (n, n)),
                new_tensor(name + MEAN, code, (n,)),
                new_tensor(name + COUNT, COUNT_DTYPE, (1,)),
            ]
        if (m := outputs.get(name)) is not None:
            tensors.append(new_tensor(name + GRAD_GRAM, code, (m, m)))
    return tensors


def new_tensor(name: str, code: str, shape: tuple[int, ...]) -> NewTensor:
    """Describe a tensor to be written."""
    size = SIZES[code]
    for length in shape:
        size *= length
    return NewTensor(name, code, shape, size)


def metadata_of(same_as: Mapping[str, str], kind: str | None) -> dict[str, str]:
    """Return the metadata of a statistics file."""
    metadata = {"format": "pt"}
    if same_as:
        metadata[SAME_AS] = json.dumps(dict(same_as), ensure_ascii=False)
    if kind is not None:
        metadata[KIND] = kind
    return metadata


def write_statistics(
    target: Path,
    tensors: Iterable[NewTensor],
    metadata: Mapping[str, str],
    value_of: Callable[[str], Tensor],
) -> None:
    """Write a file whose values are asked for one at a time; it appears when it is whole.

    The safetensors package writes only tensors that are all there: sums in files would fill the memory.
    """
    import torch

    dtypes = {"F32": torch.float32, "F64": torch.float64}
    ordered = aligned(tensors)
    with replaced(target) as part, part.open("wb") as stream:
        stream.write(build_header(ordered, metadata))
        for tensor in ordered:
            value = value_of(tensor.name).to(dtypes[tensor.dtype]).reshape(tensor.shape)
            stream.write(value.contiguous().numpy().data)
