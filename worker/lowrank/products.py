"""Products of a weight with its statistics in float32, each computed once for all who need it."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from worker.lowrank.blas import WIDENED_ELEMENTS, product, self_product
from worker.lowrank.gram import ScaledGram
from worker.lowrank.scale import ScaledWeight, scaled_copy
from worker.lowrank.weighting import Weighting


@dataclass(frozen=True, eq=False)
class WeightedProducts:
    """X = D A D' [m, n] in float32, D and D' the scales of outputs and inputs, and products with C and C'.

    C and C' are multiplied with X just once, since the products of an error X - LR follow from these. The
    near side is the shorter one, the inputs where m > n, and the other is the far one.

    Attributes
    ----------
    scaled : ScaledWeight
        W, and A.
    weighting : Weighting
        F, G or both.
    """

    scaled: ScaledWeight
    weighting: Weighting

    @property
    def is_tall(self) -> bool:
        """Whether m > n."""
        return self.scaled.weight.shape[0] > self.scaled.weight.shape[1]

    @property
    def near(self) -> ScaledGram | None:
        """The statistics of the shorter side."""
        return self.weighting.inputs if self.is_tall else self.weighting.outputs

    @property
    def far(self) -> ScaledGram | None:
        """The statistics of the longer side."""
        return self.weighting.outputs if self.is_tall else self.weighting.inputs

    @cached_property
    def _sized(self) -> tuple[torch.Tensor, float]:
        copy = scaled_copy(self.scaled.weight, self.scaled.exponent, torch.float64)
        taken = self.weighting.scaled(copy)
        low, high = (float(extreme) for extreme in torch.aminmax(taken))
        size = max(-low, high) or 1.0
        return taken.div_(size).to(torch.float32), size

    @property
    def matrix(self) -> torch.Tensor:
        """X [m, n] over its largest entry."""
        return self._sized[0]

    @property
    def size(self) -> float:
        """The largest entry of X, which all products here are without."""
        return self._sized[1]

    @cached_property
    def by_outputs(self) -> torch.Tensor:
        """C X [m, n], C that of the outputs; X itself without it."""
        return times_core(self.weighting.outputs, self.matrix)

    @cached_property
    def by_inputs(self) -> torch.Tensor:
        """X C' [m, n], C' that of the inputs; X itself without it."""
        return times_core(self.weighting.inputs, self.matrix.mT).mT

    @cached_property
    def near_gram(self) -> torch.Tensor:
        """XᵀC X [n, n] where m > n, else X C'Xᵀ [m, m]; symmetric."""
        if self.far is None:
            return self_product(self.matrix if self.is_tall else self.matrix.mT, torch.float32)
        pair = (self.matrix.mT, self.by_outputs) if self.is_tall else (self.by_inputs, self.matrix.mT)
        found = product(*pair)
        return found.add_(found.mT.clone()).mul_(0.5)

    def times_near_root(self, columns: torch.Tensor) -> torch.Tensor:
        """Return L·columns [p, k] in float32, C' = L Lᵀ of the near side; the columns without it."""
        return columns if self.near is None else product(self.near.root[0].to(torch.float32), columns)

    def forget(self) -> None:
        """Free the memory; what is needed again is computed again."""
        for name in ("_sized", "by_outputs", "by_inputs", "near_gram"):
            self.__dict__.pop(name, None)


def times_core(side: ScaledGram | None, columns: torch.Tensor) -> torch.Tensor:
    """Return C·columns [q, k] in float32, with a few rows of C at a time; the columns themselves without C.

    Parameters
    ----------
    side : ScaledGram or None
        With C [q, q].
    columns : Tensor [q, k]
        float32.
    """
    if side is None:
        return columns
    step = max(1, WIDENED_ELEMENTS // len(columns))
    found = columns.new_empty(columns.shape)
    for part, rows in zip(torch.split(found, step), torch.split(side.core, step), strict=True):
        part.copy_(product(rows.to(torch.float32), columns))
    return found


def evenness(side: ScaledGram | None) -> float:
    """Return ‖C‖_F over that of the unit matrix, by which products with C may raise rounding; at least 1."""
    if side is None:
        return 1.0
    return max(1.0, side.norm / math.sqrt(len(side.core)))
