"""What a budget pays for: each layer's cost by its rank, what there is to spend, and if that is enough."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from schemas.format.errors import quoted
from schemas.format.files import CheckpointFiles
from schemas.format.header import build_header
from schemas.format.tensor import TensorInfo
from schemas.planning.layer import LayerPlan
from schemas.planning.output import LONGEST_ERROR, output_bytes, output_metadata, plan_output
from schemas.problem import SpecError
from schemas.spec import SpecRule

# A share that would be enough is told rounded up to so many digits.
SHARE_DIGITS = 4
# The rank of each layer that is factored, by its number.
Ranks = Mapping[int, int]


class CostModel(Protocol):
    """How a budget is counted: in parameters or in bytes."""

    @property
    def limit(self) -> int:
        """What there is to spend in all."""

    def costs(self, layer: LayerPlan, ranks: Iterable[int]) -> list[int]:
        """Return what a layer costs at each rank, but for what hangs on the other layers."""

    def dense_cost(self, layer: LayerPlan) -> int:
        """Return what a layer costs that is kept whole."""

    def total(self, ranks: Ranks) -> int:
        """Return what everything costs together."""

    def refusal(self, ranks: Ranks) -> SpecError:
        """Say that even these ranks cost more than there is to spend."""


def make_cost_model(rule: SpecRule, layers: Sequence[LayerPlan], files: CheckpointFiles) -> CostModel:
    """Open the account of a budget over these layers."""
    if rule.budget_bytes is not None:
        return ByteCost(layers, files, rule.budget_bytes)
    assert rule.budget is not None
    return ParameterCost(layers, rule.budget)


@dataclass(frozen=True, slots=True)
class ParameterCost:
    """A share of the parameters of all selected layers; in the dense layout, of what is multiplied out."""

    layers: Sequence[LayerPlan]
    share: float

    @property
    def limit(self) -> int:
        # The share is taken as the decimal it was written as.
        return math.floor(Fraction(repr(self.share)) * self._before)

    def costs(self, layer: LayerPlan, ranks: Iterable[int]) -> list[int]:
        return [layer.factor_parameters(rank) for rank in ranks]

    def dense_cost(self, layer: LayerPlan) -> int:
        return layer.parameters_before

    def total(self, ranks: Ranks) -> int:
        return sum(self._cost(number, ranks) for number in range(len(self.layers)))

    def refusal(self, ranks: Ranks) -> SpecError:
        least, before = self.total(ranks), self._before
        most = max(range(len(self.layers)), key=lambda number: self._cost(number, ranks))
        share = math.ceil(Fraction(least * 10**SHARE_DIGITS, before)) / 10**SHARE_DIGITS
        return SpecError(
            "/rank/budget",
            f"The selected layers need {least} of their {before} parameters at least; "
            f"{self._cost(most, ranks)} of that are {_describe_layer(self.layers[most], ranks.get(most))}. "
            f"Give a budget of at least {share}, or exclude such layers.",
        )

    @property
    def _before(self) -> int:
        return sum(layer.parameters_before for layer in self.layers)

    def _cost(self, number: int, ranks: Ranks) -> int:
        layer = self.layers[number]
        return self.costs(layer, [ranks[number]])[0] if number in ranks else self.dense_cost(layer)


@dataclass(frozen=True, slots=True)
class ByteCost:
    """The bytes of all output files, headers and index included."""

    layers: Sequence[LayerPlan]
    files: CheckpointFiles
    limit: int

    def costs(self, layer: LayerPlan, ranks: Iterable[int]) -> list[int]:
        more = _header_bytes(layer)
        return [layer.bytes_after(rank) + more for rank in ranks]

    def dense_cost(self, layer: LayerPlan) -> int:
        return layer.bytes_before

    def total(self, ranks: Ranks) -> int:
        return output_bytes(self.files, self.layers, ranks)

    def refusal(self, ranks: Ranks) -> SpecError:
        least = self.total(ranks)
        selected = {layer.tensor: number for number, layer in enumerate(self.layers)}
        sizes = {tensor.name: tensor.nbytes for tensor in self.files.tensors}
        sizes |= {self.layers[i].tensor: self.layers[i].bytes_after(rank) for i, rank in ranks.items()}
        name = max(sizes, key=lambda name: sizes[name])
        number = selected.get(name)
        largest = (
            f"{quoted(name)}, which is not selected"
            if number is None
            else _describe_layer(self.layers[number], ranks.get(number))
        )
        return SpecError(
            "/rank/budget_bytes",
            f"The output takes {least} bytes at least; {sizes[name]} of that are {largest}. "
            f"Give a budget_bytes of at least {least}, or select more layers.",
        )


def _describe_layer(layer: LayerPlan, rank: int | None) -> str:
    how = f"at rank {rank}" if rank is not None else f"kept dense ({layer.reason or 'no rank costs less'})"
    return f"{quoted(layer.name)}, {how}"


def _header_bytes(layer: LayerPlan) -> int:
    """Estimate how much more of a header a layer takes as factors, taken by itself."""
    whole = TensorInfo(layer.tensor, layer.dtype, layer.shape, 0, layer.bytes_before)
    lengths = []
    for ranks in ({}, {0: layer.break_even_rank}):
        entries = plan_output([whole], [layer], ranks)
        metadata = output_metadata({}, entries, [layer], ranks, dict.fromkeys(ranks, LONGEST_ERROR))
        lengths.append(len(build_header([entry.spec for entry in entries], metadata)))
    return lengths[1] - lengths[0]
