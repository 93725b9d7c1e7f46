"""Ranks without a number: how many singular values stand out of noise of a size that nobody knows.

Plain functions of numbers, so that the planner computes the same ranks as `worker.lowrank` without torch.
"""

import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import atan, cos, inf, log, log1p, pi, sin, sqrt, tan
from typing import Literal

from schemas.spectrum import TIE

AutoRule = Literal["hard_threshold", "vbmf"]
# Steps of the iteration to a minimum of the free energy, each of which gains digits; it ends much earlier.
MAX_STEPS = 200


def auto_rank(
    rule: AutoRule, values: Sequence[float], shape: tuple[int, int], roundoff: float = 0.0
) -> int | None:
    """Return how many singular values a rule keeps, maybe none, or None where rounding decides it.

    Parameters
    ----------
    rule
        `hard_threshold` (Gavish and Donoho 2014) or `vbmf` (Nakajima et al. 2013).
    values
        All min(m, n) singular values, descending.
    shape
        Rows and columns, in any order.
    roundoff
        The share of Σσ² that rounding may have moved.
    """
    if not values or values[0] <= 0:
        return 0
    short, long = sorted(shape)
    squares = [(value / values[0]) ** 2 for value in values]
    total = sum(reversed(squares))
    # Below it, values are rounding: a matrix of low rank without noise has none under its own.
    floor = (len(squares) * sys.float_info.epsilon) ** 2 * total
    squares = [max(square, floor) for square in squares]
    find = _hard_threshold if rule == "hard_threshold" else _vbmf_threshold
    level, factor = find(squares, short / long)
    threshold, moved = max(level * factor, floor) * (1 + TIE), roundoff * total * (1 + factor)
    least, most = (_count_above(squares, threshold + slack) for slack in (moved, -moved))
    return least if least == most else None


def _count_above(descending: Sequence[float], limit: float) -> int:
    return bisect_left(descending, -limit, key=lambda value: -value)


def _hard_threshold(squares: Sequence[float], ratio: float) -> tuple[float, float]:
    """Return the squared median singular value, and the square of ω(β) by which it is multiplied."""
    middle, is_odd = divmod(len(squares), 2)
    median = squares[middle] if is_odd else (sqrt(squares[middle - 1]) + sqrt(squares[middle])) ** 2 / 4
    return median, hard_threshold_factor(ratio) ** 2


@lru_cache(maxsize=4096)
def hard_threshold_factor(ratio: float) -> float:
    """Return ω(β) = λ(β)/√μ_β: singular values above ω times their median are kept.

    Gavish and Donoho 2014, The optimal hard threshold for singular values is 4/√3, equations 11 and 4: λ is
    the best threshold for noise of variance 1/n, and μ_β the median of its squared singular values. `ratio`
    is β = min(m, n)/max(m, n), in (0, 1].
    """
    root = sqrt(ratio * ratio + 14 * ratio + 1)
    threshold = sqrt(2 * (ratio + 1) + 8 * ratio / (ratio + 1 + root))
    return threshold / sqrt(marchenko_pastur_median(ratio))


def marchenko_pastur_median(ratio: float) -> float:
    """Return the median μ_β of the Marchenko-Pastur distribution, β in (0, 1].

    With t = 1 + β + 2√β·cos φ the share above t is (2/π)·∫₀^φ sin²/(1 + β + 2√β·cos), in closed form here.
    """
    root = sqrt(ratio)

    def angle_share(angle: float) -> float:
        turned = atan((1 - root) / (1 + root) * tan(angle / 2))
        return ((1 + ratio) * angle / 2 - root * sin(angle) - (1 - ratio) * turned) / (2 * ratio)

    least, most = 0.0, pi
    while (middle := (least + most) / 2) not in (least, most):
        least, most = (middle, most) if angle_share(middle) < pi / 4 else (least, middle)
    return 1 + ratio + 2 * root * cos(middle)


def _vbmf_threshold(squares: Sequence[float], ratio: float) -> tuple[float, float]:
    """Return the estimated noise level of squares, M·s for variance s and M columns, and the factor on it.

    Nakajima, Sugiyama, Babacan and Tomioka 2013, Global analytic solution of fully-observed variational
    Bayesian matrix factorization: theorem 2 for the factor, theorem 3 for the free energy of s. Between two
    singular values that energy is smooth, and where one becomes noise its slope falls, so each minimum is a
    stationary point at some number of signals. All of these are compared.
    """
    energy = FreeEnergy.of(squares, ratio)
    found = (level for signals in range(len(squares)) if (level := energy.minimum(signals)) is not None)
    return min(found, key=energy.at, default=energy.tails[0] / len(squares)), energy.factor


@lru_cache(maxsize=4096)
def _least_tau(ratio: float) -> float:
    """Return the zero of Φ(τ) + Φ(τ/β) with Φ(z) = log(z + 1)/z - 1/2: weaker signals have no gain."""

    def excess(tau: float) -> float:
        return log1p(tau) / tau + log1p(tau / ratio) * ratio / tau - 1

    # The zero is 2.51·√β for β = 1, and slowly more for smaller β.
    least, most = sqrt(ratio), 100 * sqrt(ratio)
    while (middle := (least + most) / 2) not in (least, most):
        least, most = (middle, most) if excess(middle) > 0 else (least, middle)
    return middle


@dataclass(frozen=True)
class FreeEnergy:
    """The free energy as a function of the noise level of squares, up to a constant.

    A square is a signal where it is more than `factor` times the level, x = (1 + τ)(1 + β/τ) for the least τ.
    `tails` are the sums of all squares but the first 0, 1, ….
    """

    squares: Sequence[float]
    tails: Sequence[float]
    ratio: float
    least_tau: float
    factor: float

    @classmethod
    def of(cls, squares: Sequence[float], ratio: float) -> "FreeEnergy":
        """Sum up the squares, which descend, from the small end."""
        least = _least_tau(ratio)
        factor = (1 + least) * (1 + ratio / least)
        return cls(squares, list(accumulate(reversed(squares), initial=0.0))[::-1], ratio, least, factor)

    def at(self, level: float) -> float:
        """Return Σψ₀(x) + Σψ₁(x) over the signals for x = square/level, without the constant Σlog."""
        signals = _count_above(self.squares, level * self.factor)
        noise = self.tails[0] / level + len(self.squares) * log(level)
        return noise + sum(self._gain(self._tau(square / level)) for square in self.squares[:signals])

    def minimum(self, signals: int) -> float | None:
        """Return the level at which the energy has a minimum with so many signals, or None.

        Its slope in the logarithm of the level is Σ(1 - x) over the noise less Σβ(1 + 1/τ) over the signals.
        It is 0 where the level is the noise's sum over a divisor that falls as the level grows, so iterating
        from below ends at the first such level.
        """
        divisor = len(self.squares) - signals * (1 + self.ratio)
        if divisor <= 0:
            return None
        noise = self.tails[signals]
        most = self.squares[signals - 1] / self.factor if signals else inf
        least = self.squares[signals] / self.factor
        strongest = divisor - signals * self.ratio / self.least_tau
        if noise > divisor * most or (strongest > 0 and noise < strongest * least):
            return None
        level = max(noise / divisor, least)
        for _ in range(MAX_STEPS):
            taus = (self._tau(square / level) for square in self.squares[:signals])
            reduced = divisor - self.ratio * sum(1 / tau for tau in taus)
            if reduced <= 0 or noise > reduced * most or noise < reduced * least:
                return None
            previous, level = level, max(noise / reduced, least)
            if level <= previous * (1 + TIE):
                break
        return level

    def _tau(self, x: float) -> float:
        excess = x - 1 - self.ratio
        return (excess + sqrt(max(excess * excess - 4 * self.ratio, 0.0))) / 2

    def _gain(self, tau: float) -> float:
        return log1p(tau) + self.ratio * log1p(tau / self.ratio) - tau
