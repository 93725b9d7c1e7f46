"""The cost of layers under a budget, counted in parameters or in bytes of the output files."""

import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

from schemas.format.errors import quoted
from schemas.format.files import CheckpointFiles
from schemas.format.header import NewTensor, build_header
from schemas.format.tensor import TensorInfo
from schemas.planning.layer import Chosen, LayerPlan, chosen_rank
from schemas.planning.output import output_metadata, plan_adapter, plan_output
from schemas.planning.output_size import LONGEST_ERROR, OutputSize
from schemas.problem import SpecError
from schemas.rank_rule import SpecRule

# An error names the smallest sufficient share, rounded up to this many digits.
SHARE_DIGITS = 4


class CostModel(Protocol):
    """How a budget is counted: in parameters or in bytes."""

    @property
    def limit(self) -> int:
        """The budget: the largest allowed total."""

    def costs(self, layer: LayerPlan, ranks: Sequence[int]) -> list[int]:
        """Return the cost of a layer at each rank, without the parts that depend on other layers."""

    def dense_cost(self, layer: LayerPlan) -> int:
        """Return the cost of a layer without a rank: kept dense, or left out of an adapter."""

    def total(self, chosen: Chosen) -> int:
        """Return the total cost of all layers and of everything else that the budget counts."""

    def budget_error(self, cheapest: Chosen) -> SpecError:
        """Build the error for a budget that even the cheapest choices exceed."""


def make_cost_model(rule: SpecRule, layers: Sequence[LayerPlan], files: CheckpointFiles) -> CostModel:
    """Return the cost model that a budget over these layers counts by."""
    if rule.budget_bytes is not None:
        return ByteCost(layers, files, rule.budget_bytes, OutputSize(files, layers))
    assert rule.budget is not None
    return ParameterCost(layers, rule.budget)


@dataclass(frozen=True, slots=True)
class ParameterCost:
    """Counts parameters of all selected layers; in the dense layout, of the factors before multiplication.

    Weights that do not belong to a plain linear layer are not counted.
    """

    layers: Sequence[LayerPlan]
    share: float
    # Layers of one kind cost the same, and a mixture of experts has thousands of a kind.
    _known: dict[Hashable, list[int]] = field(default_factory=dict)

    @property
    def limit(self) -> int:
        # Taken as the decimal in the spec, not as the nearest double.
        return math.floor(Fraction(repr(self.share)) * self._parameters_before)

    def costs(self, layer: LayerPlan, ranks: Sequence[int]) -> list[int]:
        key = layer.stored_kind, tuple(ranks)
        if key not in self._known:
            self._known[key] = [layer.factor_parameters(rank) for rank in ranks]
        return self._known[key]

    def dense_cost(self, layer: LayerPlan) -> int:
        return 0 if layer.in_adapter else layer.parameters_before

    def total(self, chosen: Chosen) -> int:
        return sum(self._cost(number, chosen) for number in range(len(self.layers)))

    def budget_error(self, cheapest: Chosen) -> SpecError:
        least, before = self.total(cheapest), self._parameters_before
        largest = max(range(len(self.layers)), key=lambda number: self._cost(number, cheapest))
        share = math.ceil(Fraction(least * 10**SHARE_DIGITS, before)) / 10**SHARE_DIGITS
        return SpecError(
            "/rank/budget",
            f"The selected layers need {least} of their {before} parameters or more, of which "
            f"{self._cost(largest, cheapest)} are for "
            f"{_describe_layer(cheapest.get(largest, self.layers[largest]))}. "
            f"Give a budget of at least {share}, or exclude such layers.",
        )

    @property
    def _parameters_before(self) -> int:
        return sum(layer.parameters_before for layer in self.layers if layer.is_linear)

    def _cost(self, number: int, chosen: Chosen) -> int:
        layer = chosen.get(number, self.layers[number])
        if not layer.is_linear:
            return 0
        if number not in chosen:
            return self.dense_cost(layer)
        return layer.factor_parameters(chosen_rank(layer))


@dataclass(frozen=True, slots=True)
class ByteCost:
    """Counts bytes of all output files, headers and index included."""

    layers: Sequence[LayerPlan]
    files: CheckpointFiles
    limit: int
    size: OutputSize
    _known: dict[Hashable, list[int]] = field(default_factory=dict)

    def costs(self, layer: LayerPlan, ranks: Sequence[int]) -> list[int]:
        # The header grows with the length of the name as JSON, and by nothing else of it.
        key = layer.stored_kind, tuple(ranks), len(json.dumps(layer.name, ensure_ascii=False).encode())
        if key not in self._known:
            header_bytes = _extra_header_bytes(layer)
            self._known[key] = [
                layer.bytes_after(rank) + header_bytes if rank or not layer.in_adapter else 0
                for rank in ranks
            ]
        return self._known[key]

    def dense_cost(self, layer: LayerPlan) -> int:
        return layer.bytes_after(None)

    def total(self, chosen: Chosen) -> int:
        return self.size.at(chosen)

    def budget_error(self, cheapest: Chosen) -> SpecError:
        least = self.total(cheapest)
        selected = {layer.replaced[0]: number for number, layer in enumerate(self.layers)}
        copied = () if any(layer.in_adapter for layer in self.layers) else self.files.tensors
        sizes = {tensor.name: tensor.nbytes for tensor in copied}
        sizes |= {layer.replaced[0]: layer.bytes_after(chosen_rank(layer)) for layer in cheapest.values()}
        name = max(sizes, key=lambda name: sizes[name])
        number = selected.get(name)
        largest = (
            f"{quoted(name)}, which is not selected"
            if number is None
            else _describe_layer(cheapest.get(number, self.layers[number]))
        )
        return SpecError(
            "/rank/budget_bytes",
            f"The output has {least} bytes or more, of which {sizes[name]} are for {largest}. "
            f"Give a budget_bytes of at least {least}, or select more layers.",
        )


def _describe_layer(layer: LayerPlan) -> str:
    if not isinstance(layer.rank, int):
        how = f"kept dense ({layer.reason or 'no rank costs less'})"
    else:
        how = f"at rank {layer.rank}" if layer.form.has_ranks else f"as {layer.form.name}"
    return f"{quoted(layer.name)}, {how}"


def _extra_header_bytes(layer: LayerPlan) -> int:
    """Estimate by how many bytes the header grows when a layer is factored, as if it were alone."""
    if layer.in_adapter:
        factors = plan_adapter([layer], {0: layer.largest_rank})
        return len(build_header([factor.new_tensor for factor in factors], {}))
    plain = TensorInfo(layer.tensor, layer.dtype, layer.shape, 0, layer.bytes_before)
    dense = [plain] if layer.encoded is None else _as_stored(layer.encoded.tensors(layer.name))
    lengths = []
    for ranks in ({}, {0: layer.break_even_rank}):
        entries = plan_output(dense, [layer], ranks)
        metadata = output_metadata({}, entries, [layer], ranks, dict.fromkeys(ranks, LONGEST_ERROR))
        lengths.append(len(build_header([entry.new_tensor for entry in entries], metadata)))
    return lengths[1] - lengths[0]


def _as_stored(tensors: Sequence[NewTensor]) -> list[TensorInfo]:
    return [TensorInfo(each.name, each.dtype, each.shape, 0, each.nbytes) for each in tensors]
