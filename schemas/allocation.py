"""Spending one budget over many layers so that the sum of their errors is as small as can be.

Errors are convex in the cost of a rank, so a price per unit of cost tells each layer which rank to buy, and
by one comparison more whether it is better off dense. The price at which all of them meet the budget gives
a choice that is nearly the best, and a bound that none beats (Lagrangian duality). The rest is a search
within that bound.
"""

import struct
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf

from schemas.curve import Curve
from schemas.search import search


@dataclass(frozen=True, slots=True)
class Spending:
    """A choice for each layer, and the sum of their errors."""

    positions: tuple[int, ...]
    error: float


def allocate(curves: Sequence[Curve], capacity: int) -> dict[str, int | None]:
    """Return a rank for each layer, or None for dense, by name; together they cost at most the capacity.

    The order in which the layers are given does not matter. What is left over does not pay for the next step
    of any layer, except where that would not lower its error.

    Raises
    ------
    ValueError
        If the cheapest choices together cost more than the capacity.
    """
    if sum(curve.costs[0] for curve in curves) > capacity:
        raise ValueError("the cheapest choices together cost more than the capacity")
    ordered = sorted(curves, key=lambda curve: curve.name)
    best = _best(ordered, capacity)
    return {curve.name: curve.rank(at) for curve, at in zip(ordered, best.positions, strict=True)}


def _best(curves: Sequence[Curve], capacity: int) -> Spending:
    price = _price(curves, capacity)
    greedy = _filled(curves, [curve.best(price) for curve in curves], capacity)
    found = search(curves, price, capacity, below=greedy.error)
    if found is None:
        return greedy
    return min(greedy, _filled(curves, found, capacity), key=lambda spending: spending.error)


def _price(curves: Sequence[Curve], capacity: int) -> float:
    """Return the least price at which what all buy is within the capacity, to the last bit."""

    def is_met(bits: int) -> bool:
        price = _double(bits)
        return sum(curve.costs[curve.best(price)] for curve in curves) <= capacity

    # Taken as integers, positive doubles keep their order; at an infinite price all buy their cheapest.
    return _double(bisect_left(range(_bits(inf)), True, lo=1, key=is_met))


def _bits(value: float) -> int:
    return int.from_bytes(struct.pack(">d", value))


def _double(bits: int) -> float:
    value: float = struct.unpack(">d", bits.to_bytes(8))[0]
    return value


def _filled(curves: Sequence[Curve], positions: Sequence[int], capacity: int) -> Spending:
    """Go on with whichever layer gains most for its cost, while its next step fits."""
    at = list(positions)
    left = capacity - sum(curve.costs[p] for curve, p in zip(curves, at, strict=True))
    steps = [(curve.fall(at[i]), i) for i, curve in enumerate(curves) if at[i] < curve.dense]
    heapify(steps)
    while steps:
        fall, i = heappop(steps)
        curve = curves[i]
        cost = curve.costs[at[i] + 1] - curve.costs[at[i]]
        if fall < 0 and cost <= left:
            at[i] += 1
            left -= cost
            if at[i] < curve.dense:
                heappush(steps, (curve.fall(at[i]), i))
    return Spending(tuple(at), sum(curve.errors[p] for curve, p in zip(curves, at, strict=True)))
