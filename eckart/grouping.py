"""Layers that are alike, put together: what repeats from block to block is said once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from schemas.plan import PlannedLayer
from schemas.report import LayerReport

if TYPE_CHECKING:
    from collections.abc import Iterable

Layer = TypeVar("Layer", LayerReport, PlannedLayer)


@dataclass(frozen=True, slots=True)
class Group(Generic[Layer]):
    """Layers of one place in the network, one shape, one method and one outcome; never empty."""

    layers: tuple[Layer, ...]

    @property
    def first(self) -> Layer:
        """The layer that all others are like."""
        return self.layers[0]

    @property
    def name(self) -> str:
        """The common name: `*` stands where the numbers differ."""
        parts = zip(*(layer.name.split(".") for layer in self.layers), strict=True)
        return ".".join(column[0] if len(set(column)) == 1 else "*" for column in parts)

    @property
    def saved(self) -> float:
        """The share of the parameters that is gone."""
        after = sum(layer.parameters_after for layer in self.layers)
        return 1 - after / sum(layer.parameters_before for layer in self.layers)


def grouped(layers: Iterable[Layer]) -> list[Group[Layer]]:
    """Group layers in the order in which the first of each comes."""
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for layer in layers:
        groups.setdefault(_likeness(layer), []).append(layer)
    return [Group(tuple(alike)) for alike in groups.values()]


def _likeness(layer: LayerReport | PlannedLayer) -> tuple[object, ...]:
    place = tuple("*" if part.isdecimal() else part for part in layer.name.split("."))
    same = (layer.shape, layer.transposed, layer.calibrated, layer.dtype, layer.method, layer.outcome)
    return (place, *same, layer.reason)
