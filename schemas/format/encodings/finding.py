"""See the tensors of a checkpoint as planning does: those that store one quantized weight are that weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from schemas.format.encodings.base import (
    BIAS,
    ENCODINGS,
    PACKED,
    WEIGHT,
    Encoded,
    EncodedWeight,
    Neighbours,
)
from schemas.format.encodings.mxfp4 import find_stacks

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator, Sequence

    from schemas.format.encodings.quantization import Quantization
    from schemas.format.tensor import TensorInfo

# Values of these dtypes are no numbers without their scales.
VALUE_DTYPES = frozenset({"F8_E4M3", "F8_E5M2", "U8", "I32", "F4"})


@dataclass(frozen=True, slots=True)
class PlannedTensors:
    """The tensors of a checkpoint as planning sees them.

    `unknown` has the names of those that seem to hold quantized values, of which nothing tells how.
    """

    tensors: Sequence[TensorInfo | EncodedWeight]
    unknown: frozenset[str] = field(default_factory=frozenset)

    @property
    def encoded(self) -> list[EncodedWeight]:
        """The weights that several tensors store."""
        return [tensor for tensor in self.tensors if isinstance(tensor, EncodedWeight)]


def find_weights(
    tensors: Sequence[TensorInfo],
    quantization: Quantization,
    *,
    leave: Collection[str] = (),
    stacks: bool = True,
) -> PlannedTensors:
    """Put each quantized weight, in the place of its values, for the tensors that store it.

    `leave` has modules that are not looked at, such as those that an earlier job has rounded. With `stacks`,
    the weights of experts that are stored together are found too.
    """
    replaced: dict[str, Sequence[EncodedWeight]] = {}
    unknown: set[str] = set()
    known: dict[Hashable, Encoded | None] = {}
    for near in _candidates(tensors, leave):
        kind = near.kind(quantization)
        if kind not in known:
            known[kind] = _find(near, quantization)
        encoded = known[kind]
        if encoded is not None:
            weight = near.seen_as(encoded)
            others = (tensor.name for last, tensor in near.below.items() if last != BIAS)
            replaced |= dict.fromkeys(others, ()) | {weight.values.name: (weight,)}
        else:
            unknown |= {
                near.below[last].name
                for last in (WEIGHT, PACKED)
                if last in near.below and near.below[last].dtype in VALUE_DTYPES
            }
    for blocks, scales, experts in find_stacks(tensors, quantization) if stacks else ():
        replaced |= {blocks.name: experts, scales.name: ()}
    if not replaced:
        return PlannedTensors(tensors, frozenset(unknown))
    planned = tuple(each for tensor in tensors for each in replaced.get(tensor.name, (tensor,)))
    return PlannedTensors(planned, frozenset(unknown))


def _find(near: Neighbours, quantization: Quantization) -> Encoded | None:
    """Return how the one encoding that fits stores the weight, if it is one."""
    fitting = [
        encoded
        for encoding in ENCODINGS
        if not encoding.markers.isdisjoint(near.below)
        and (encoded := encoding.find(near, quantization)) is not None
    ]
    return fitting[0] if len(fitting) == 1 else None


def _candidates(tensors: Sequence[TensorInfo], leave: Collection[str]) -> Iterator[Neighbours]:
    """Yield the modules that have a weight of values, or a part of an encoding, with all their tensors."""
    markers = frozenset[str]().union(*(encoding.markers for encoding in ENCODINGS))
    owners: set[str] = set()
    for tensor in tensors:
        module, _, last = tensor.name.rpartition(".")
        if last in markers or (last == WEIGHT and tensor.dtype in VALUE_DTYPES):
            owners.add(module)
    owners.difference_update(leave)
    owners.discard("")
    if not owners:
        return
    below: dict[str, dict[str, TensorInfo]] = {owner: {} for owner in owners}
    for tensor in tensors:
        module, _, last = tensor.name.rpartition(".")
        if module in below:
            below[module][last] = tensor
    for module in list(below):
        yield Neighbours(module, below.pop(module))
