"""Rank rules that need a spectrum, and the sums of squares they stand on."""

import math
import sys
from dataclasses import dataclass

import torch

# Exact ties (a Hadamard matrix has n equal singular values) are not left to the last bits of float64.
TIE = 1e-12


@dataclass(frozen=True)
class EnergyRank:
    """The least k with Σ_{i≤k} σᵢ² ≥ τ·Σσᵢ², for τ = `energy` in (0, 1]."""

    energy: float

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy must lie in (0, 1], not {self.energy}")

    @property
    def loss(self) -> float:
        """The part of Σσᵢ² that may be lost: 1 - τ."""
        return 1 - self.energy


@dataclass(frozen=True)
class ErrorRank:
    """The least k with ‖W - Ŵ‖_F ≤ ε·‖W‖_F, for ε = `epsilon` ≥ 0."""

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon must be a number of at least 0, not {self.epsilon}")

    @property
    def loss(self) -> float:
        """The part of Σσᵢ² that may be lost: ε²."""
        return self.epsilon**2

    def allows(self, relative_error: float) -> bool:
        """Say whether a measured error keeps the promise; equal to twelve digits is equal."""
        return relative_error <= self.epsilon * (1 + TIE)


RankRule = EnergyRank | ErrorRank


def least_rank(singular_values: torch.Tensor, rule: RankRule, *, slack: float = 0.0) -> int:
    """Return the least k ≥ 1 whose tail Σ_{i>k} σᵢ² is at most the loss the rule allows of Σσᵢ².

    Told by the tail, because that keeps its digits where nearly all energy is to be kept. A loss may be
    1e-12 of itself more, so that ties do not hang on rounding, and a tail under the rounding of a
    decomposition in float64, (p·eps)²·Σσᵢ², counts as zero.

    Parameters
    ----------
    singular_values : Tensor [p]
        Descending. All zero gives 1.
    rule : EnergyRank or ErrorRank
        What may be lost.
    slack : float
        A further part of Σσᵢ² that may be lost (or, negative, may not).
    """
    tails = tail_energies(singular_values)
    rounding = (singular_values.numel() * sys.float_info.epsilon) ** 2
    allowed = (max(rule.loss * (1 + TIE), rounding) + slack) * float(tails[0])
    # Tails descend, so the least k is the count of those that are too large; no factor has rank 0.
    return max(1, int((tails > max(allowed, 0.0)).sum()))


def tail_energies(singular_values: torch.Tensor) -> torch.Tensor:
    """Return Σ_{i>k} σᵢ² for k = 0…p as float64 [p + 1], summed from the small end."""
    squares = singular_values.to("cpu", torch.float64).square()  # [p]
    zero = torch.zeros(1, dtype=torch.float64)
    return torch.cat((zero, squares.flip(0))).cumsum(0).flip(0)  # [p + 1], the last is 0
