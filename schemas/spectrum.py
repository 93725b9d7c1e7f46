"""What follows from singular values: tail energies, ranks by energy and error, and how far to trust them.

Plain functions of numbers, so that the planner computes the same ranks as `worker.lowrank` without torch.
"""

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import ldexp

# The share by which rounding may raise the error of a truncation over the best possible one.
ROUNDING_EXCESS = 1e-4
# Exact ties (a Hadamard matrix has n equal singular values) must not depend on the last bits of float64.
TIE = 1e-12


def squared_tails(spectrum: Iterable[float], scale: float = 1.0) -> "array[float]":
    """Return the tail energies Σ_{i>k} σᵢ² for k = 0…p in units of scale², summed from the small end.

    `spectrum` holds the singular values, descending. The result has one entry more; the last is 0.
    """
    squares = (sigma * sigma for sigma in (value / scale for value in reversed(array("d", spectrum))))
    tails = array("d", accumulate(squares, initial=0.0))
    tails.reverse()
    return tails


def smallest_rank_within(tails: Sequence[float], loss: float, roundoff: float = 0.0) -> int | None:
    """Return the least k ≥ 1 that loses at most this share of Σσᵢ², or None where rounding decides it.

    `tails` are those of :func:`squared_tails`; they keep their digits where nearly all energy is kept.
    `roundoff` is the share of Σσᵢ² that rounding may have moved. The loss may be exceeded by 1e-12 of itself,
    so that ties do not depend on rounding, and a tail below the rounding of float64, (p·eps)²·Σσᵢ², is zero.
    """
    rounding = ((len(tails) - 1) * sys.float_info.epsilon) ** 2
    allowed = max(loss * (1 + TIE), rounding)
    least, most = (_count_above(tails, (allowed + slack) * tails[0]) for slack in (roundoff, -roundoff))
    # No factor has rank 0.
    return max(1, least) if max(1, least) == max(1, most) else None


def _count_above(descending: Sequence[float], limit: float) -> int:
    return bisect_left(descending, -max(limit, 0.0), key=lambda value: -value)


def is_accurate(roundoff: float, tail: float, total: float) -> bool:
    """Return whether a tail energy is known well enough for an error within `ROUNDING_EXCESS` of the best.

    `roundoff` is the share of the total energy that rounding may have moved.
    """
    # An error of (1 + x)ε is 2xε² above the best possible error ε in its square.
    return roundoff == 0 or roundoff * total <= 2 * ROUNDING_EXCESS * tail


@dataclass(frozen=True)
class Spectrum:
    """All singular values of 2^-exponent · W, descending; rounding may have moved `roundoff` of Σσ²."""

    values: Sequence[float]
    exponent: int
    roundoff: float

    @cached_property
    def tails(self) -> "array[float]":
        """The tail energies."""
        return squared_tails(self.values)

    def scaled(self) -> "array[float]":
        """Return the singular values of W itself; infinite where float64 cannot hold them."""
        # In two steps, since 2^exponent alone may be out of range.
        half = self.exponent // 2
        first, second = ldexp(1.0, half), ldexp(1.0, self.exponent - half)
        return array("d", (value * first * second for value in self.values))

    def is_accurate_for(self, rank: int) -> bool:
        """Return whether the error that a rank leaves is well above rounding."""
        return is_accurate(self.roundoff, self.tails[rank], self.tails[0])

    def rank_of_energy(self, energy: float) -> int | None:
        """Return the least k whose values hold this share of Σσ², or None where rounding decides it."""
        return smallest_rank_within(self.tails, 1 - energy, self.roundoff)


def first_accurate(spectra: Iterable[Spectrum], rank: int) -> Spectrum | None:
    """Return the first of ever more accurate spectra that is accurate for every rank up to this one."""
    return next((spectrum for spectrum in spectra if spectrum.is_accurate_for(rank)), None)
