"""One layer's choices under a budget: the ranks it may have and dense, with what each costs and loses."""

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ldexp


def squared_tails(spectrum: Sequence[float], scale: float = 1.0) -> "array[float]":
    """Return the sums of the squares of all but the first 0, 1, … singular values, in units of scale².

    They are summed from the small end, as the numerics do.
    """
    squares = (sigma * sigma for sigma in (value / scale for value in reversed(spectrum)))
    tails = array("d", accumulate(squares, initial=0.0))
    tails.reverse()
    return tails


# These two are worker/lowrank's own; a test compares what comes of them.
ROUNDING_EXCESS = 1e-4
TIE = 1e-12


@dataclass(frozen=True, slots=True)
class Spectrum:
    """All singular values of 2^-exponent · W, descending; `noise` is what rounding may have moved of Σσ²."""

    values: Sequence[float]
    exponent: int
    noise: float

    def scaled(self) -> "array[float]":
        """Return the singular values of W itself; infinite where float64 cannot hold them."""
        # In two steps, since 2^exponent alone may be out of range.
        half = self.exponent // 2
        first, second = ldexp(1.0, half), ldexp(1.0, self.exponent - half)
        return array("d", (value * first * second for value in self.values))

    def resolves(self, rank: int) -> bool:
        """Say whether the error that a rank leaves stands clear of rounding."""
        tails = squared_tails(self.values)
        return self.noise == 0 or self.noise * tails[0] <= 2 * ROUNDING_EXCESS * tails[rank]

    def rank_of_energy(self, energy: float) -> int | None:
        """Return the least k whose values have this part of Σσ², or None where that hangs on rounding."""
        tails = squared_tails(self.values)
        rounding = (len(self.values) * sys.float_info.epsilon) ** 2
        loss = max((1 - energy) * (1 + TIE), rounding)
        least, most = (_count_above(tails, (loss + slack) * tails[0]) for slack in (self.noise, -self.noise))
        return max(1, least) if max(1, least) == max(1, most) else None


def _count_above(descending: Sequence[float], limit: float) -> int:
    return bisect_left(descending, -max(limit, 0.0), key=lambda value: -value)


def first_accurate(spectra: Iterable[Spectrum], rank: int) -> Spectrum | None:
    """Return the first spectrum, of ever more careful ones, that is good for every rank up to this one."""
    return next((spectrum for spectrum in spectra if spectrum.resolves(rank)), None)
