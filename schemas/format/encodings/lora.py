"""The pairs of a LoRA adapter, each seen as the one weight that is their product.

Only a job that makes an adapter smaller sees them so; for all others they are the matrices that they are.
"""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING

from schemas.format.encodings.base import VALUES, WEIGHT, Encoded, EncodedWeight, Part
from schemas.format.encodings.finding import PlannedTensors
from schemas.format.tensor import FLOAT_DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from schemas.format.tensor import TensorInfo

NAME = "lora"
UP, ALPHA = "up", "alpha"
# PEFT's names, perhaps with that of the adapter; those of kohya; and of older diffusers.
_DOWN = re.compile(r"lora_A(?P<adapter>\.[^.]+)?\.weight|lora_down\.weight|lora\.down\.weight")
_IN_NAME = re.compile(rf"(?P<module>.+)\.(?:{_DOWN.pattern})")
_UP_OF = {"lora_A": "lora_B", "lora_down": "lora_up", "lora.down": "lora.up"}


def find_lora_pairs(tensors: Sequence[TensorInfo]) -> PlannedTensors:
    """Put one weight for each pair that has nothing but perhaps a scale and biases beside it.

    So those of DoRA and of other kinds stay, and those whose shapes do not fit.
    """
    owners = {found["module"] for tensor in tensors if (found := _IN_NAME.fullmatch(tensor.name))}
    below: dict[str, dict[str, TensorInfo]] = {owner: {} for owner in owners}
    for tensor in tensors:
        module = tensor.name
        while module := module.rpartition(".")[0]:
            if module in below:
                below[module][tensor.name.removeprefix(f"{module}.")] = tensor
                break
    replaced: dict[str, tuple[EncodedWeight, ...]] = {}
    for module, own in below.items():
        pair = _pair(module, own)
        if pair is not None:
            parts = (part.name for part in pair.encoded.tensors(module))
            replaced |= dict.fromkeys(parts, ()) | {pair.values.name: (pair,)}
    return PlannedTensors(tuple(each for tensor in tensors for each in replaced.get(tensor.name, (tensor,))))


def lora_ranks(tensors: Sequence[TensorInfo]) -> dict[str, int]:
    """Return the rank of each module of an adapter, also of those that are no pair here, by its name."""
    ranks = {}
    for tensor in tensors:
        found = _IN_NAME.fullmatch(tensor.name) or _EMBEDDING.fullmatch(tensor.name)
        if found is not None and len(tensor.shape) > 1:
            ranks[found["module"]] = tensor.shape[0]
    return ranks


# PEFT's name for that of an embedding, which is a parameter and no module.
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_A(?:\.[^.]+)?")


def _pair(module: str, below: Mapping[str, TensorInfo]) -> EncodedWeight | None:
    downs = [last for last in below if _DOWN.fullmatch(last)]
    if len(downs) != 1:
        return None
    first = next(first for first in _UP_OF if downs[0].startswith(first))
    last = _UP_OF[first] + downs[0].removeprefix(first)
    down, up, alpha = below[downs[0]], below.get(last), below.get(ALPHA)
    known = {downs[0], last, ALPHA}
    if up is None or any(name not in known and not name.endswith("bias") for name in below):
        return None
    if not _fit(down, up) or (alpha is not None and not _is_scale(alpha)):
        return None
    parts = [Part(VALUES, downs[0], down.dtype, down.shape), Part(UP, last, up.dtype, up.shape)]
    if alpha is not None:
        parts.append(Part(ALPHA, ALPHA, alpha.dtype, alpha.shape))
    shape = (up.shape[0], prod(down.shape[1:]))
    encoded = Encoded(down.dtype, shape, NAME, tuple(parts), rank=down.shape[0])
    return EncodedWeight(f"{module}.{WEIGHT}", encoded, down)


def _fit(down: TensorInfo, up: TensorInfo) -> bool:
    """Whether two matrices multiply; of a convolution, the second must have a single element."""
    return (
        down.dtype == up.dtype
        and down.dtype in FLOAT_DTYPES
        and len(down.shape) == len(up.shape) >= 2
        and down.shape[0] == up.shape[1]
        and set(up.shape[2:]) <= {1}
        and 0 not in (*down.shape, *up.shape)
    )


def _is_scale(alpha: TensorInfo) -> bool:
    return prod(alpha.shape) == 1 and alpha.dtype in FLOAT_DTYPES
