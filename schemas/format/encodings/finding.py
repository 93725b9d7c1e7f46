"""See the tensors of a checkpoint as planning does: those that store one quantized weight are that weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from schemas.format.encodings.base import ENCODINGS, WEIGHT, EncodedWeight, Neighbours
from schemas.format.encodings.mxfp4 import find_stacks

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from schemas.format.encodings.quantization import Quantization
    from schemas.format.tensor import TensorInfo

# Values of these dtypes are no numbers without their scales.
VALUE_DTYPES = frozenset({"F8_E4M3", "F8_E5M2", "U8", "I32", "F4"})
# The name of a tensor that holds values, if it is not the weight's own.
PACKED = "weight_packed"


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

    `leave` has modules that are not looked at, such as those that an earlier job has rounded. `stacks`: those
    of experts too.
    """
    found: dict[str, EncodedWeight] = {}
    unknown: set[str] = set()
    for near in _candidates(tensors, leave):
        weight = _find(near, quantization)
        if weight is not None:
            found[weight.values.name] = weight
        else:
            unknown |= {
                near.below[last].name
                for last in (WEIGHT, PACKED)
                if last in near.below and near.below[last].dtype in VALUE_DTYPES
            }
    replaced: dict[str, Sequence[EncodedWeight]] = {name: (weight,) for name, weight in found.items()}
    for weight in found.values():
        for tensor in weight.encoded.tensors(weight.module):
            replaced.setdefault(tensor.name, ())
    for blocks, scales, experts in find_stacks(tensors, quantization) if stacks else ():
        replaced |= {blocks.name: experts, scales.name: ()}
    if not replaced:
        return PlannedTensors(tensors, frozenset(unknown))
    planned = tuple(each for tensor in tensors for each in replaced.get(tensor.name, (tensor,)))
    return PlannedTensors(planned, frozenset(unknown))


def _find(near: Neighbours, quantization: Quantization) -> EncodedWeight | None:
    """Return the weight of the one encoding that fits, if it is one."""
    fitting = [
        weight
        for encoding in ENCODINGS
        if not encoding.markers.isdisjoint(near.below)
        and (weight := encoding.find(near, quantization)) is not None
    ]
    return fitting[0] if len(fitting) == 1 else None


def _candidates(tensors: Sequence[TensorInfo], leave: Collection[str]) -> list[Neighbours]:
    """Return the modules that have a weight of values, or a part of an encoding, with all their tensors."""
    markers = frozenset[str]().union(*(encoding.markers for encoding in ENCODINGS))
    owners: set[str] = set()
    for tensor in tensors:
        module, _, last = tensor.name.rpartition(".")
        if last in markers or (last == WEIGHT and tensor.dtype in VALUE_DTYPES):
            owners.add(module)
    owners.difference_update(leave)
    owners.discard("")
    if not owners:
        return []
    below: dict[str, dict[str, TensorInfo]] = {owner: {} for owner in owners}
    for tensor in tensors:
        module, _, last = tensor.name.rpartition(".")
        if module in below:
            below[module][last] = tensor
    return [Neighbours(module, tensors_below) for module, tensors_below in below.items()]
