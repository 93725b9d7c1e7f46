"""Statistics files: the tensors that say what is known of each layer's inputs and gradients."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.checkpoint import listed
from eckart.errors import InputError
from eckart.header import NewTensor, StoredTensor, aligned, build_header, read_header, replaced

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

GRAM, MEAN, COUNT, GRAD_GRAM = ".gram", ".mean", ".count", ".grad_gram"
# What layers with the same inputs share; gradients are always a layer's own.
SHARED = (GRAM, MEAN, COUNT)
SAME_AS, KIND = "same_as", "kind"
CODES = {"float32": "F32", "float64": "F64"}
SIZES = {"F32": 4, "F64": 8}
COUNT_DTYPE = "F64"
# What a tensor may be stored as, and the number of its dimensions.
LEGAL = {
    GRAM: ({"F32", "F64"}, 2),
    MEAN: ({"F32", "F64"}, 1),
    COUNT: ({"F32", "F64", "I64"}, 1),
    GRAD_GRAM: ({"F32", "F64"}, 2),
}


@dataclass(frozen=True, slots=True)
class StatisticsFile:
    """What a file holds, by its header: each layer's tensors by their endings, also those it shares."""

    path: Path
    layers: Mapping[str, Mapping[str, StoredTensor]]
    same_as: Mapping[str, str]
    kind: str | None

    def load(self, tensor: StoredTensor) -> Tensor:
        """Read a tensor in float64."""
        import torch

        dtypes = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
        with self.path.open("rb") as stream:
            stream.seek(tensor.start)
            raw = bytearray(stream.read(tensor.size_bytes))
        return torch.frombuffer(raw, dtype=dtypes[tensor.dtype]).to(torch.float64).reshape(tensor.shape)


def read_statistics(path: Path) -> StatisticsFile:
    """Read the header of a statistics file, and refuse what is none."""
    header = read_header(path)
    layers: dict[str, dict[str, StoredTensor]] = {}
    for tensor in header.tensors:
        name, dot, what = tensor.name.rpartition(".")
        ending = dot + what
        if ending not in LEGAL:
            raise InputError(
                f"{path}: {tensor.name} is no statistic; the names of those end in {', '.join(LEGAL)}"
            )
        _check(path, tensor, *LEGAL[ending])
        layers.setdefault(name, {})[ending] = tensor
    same_as = _same_as(path, header.metadata.get(SAME_AS, "{}"))
    for name, other in same_as.items():
        own = layers.setdefault(name, {})
        if other in same_as or other not in layers or own.keys() & set(SHARED):
            raise InputError(
                f"{path}: same_as says that {name} is as {other}, which does not fit its tensors"
            )
        own |= {ending: tensor for ending, tensor in layers[other].items() if ending in SHARED}
    for name, own in layers.items():
        if COUNT not in own and own.keys() != {GRAM}:
            others = listed(sorted(own.keys() - {GRAM}))
            raise InputError(f"{path} has no {name}{COUNT}, without which {others} cannot be used")
    return StatisticsFile(path, layers, same_as, header.metadata.get(KIND))


def _check(path: Path, tensor: StoredTensor, dtypes: set[str], dims: int) -> None:
    if tensor.dtype not in dtypes:
        raise InputError(f"{path}: {tensor.name} is {tensor.dtype}; it must be one of {sorted(dtypes)}")
    is_count = tensor.name.endswith(COUNT)
    if len(tensor.shape) != dims or len(set(tensor.shape)) != 1 or (is_count and tensor.shape != (1,)):
        expected = "[1]" if is_count else "square" if dims > 1 else "a vector"
        raise InputError(f"{path}: {tensor.name} is {list(tensor.shape)}; it must be {expected}")


def _same_as(path: Path, text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(other, str) for other in found.values()):
        raise InputError(f"{path}: the metadata entry same_as must be a JSON object of names of layers")
    return found


def checked_target(path: str | os.PathLike[str]) -> Path:
    """Refuse a file that cannot be written, before work that may take hours."""
    target = Path(path)
    if not target.name.endswith(".safetensors"):
        raise InputError(f"{target}: give a name that ends in .safetensors")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is not a folder; make it first, or name another file")
    return target


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
