"""One layer's choices under a budget: the ranks it may have and dense, with what each costs and loses."""

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise
from math import inf
from typing import Any


@dataclass(frozen=True, slots=True)
class RateCurve:
    """What a layer may become, the cheapest first; the last choice is to keep it dense, without an error.

    `falls` is how fast the error falls from each rank to the next, per unit of cost: negative and, because
    singular values descend, ascending. So what a price per unit of cost buys is found by bisection.
    """

    name: str
    ranks: range
    costs: "array[int]"
    errors: "array[float]"
    slopes: "array[float]"

    @property
    def dense(self) -> int:
        """The position of the last choice."""
        return len(self.ranks)

    def rank(self, position: int) -> int | None:
        """Return the rank at a position, or None for dense."""
        return self.ranks[position] if position < self.dense else None

    def cost(self, rank: int | None) -> int:
        """Return what a rank costs, or dense."""
        return self.costs[self.dense if rank is None else self.ranks.index(rank)]

    def slope(self, position: int) -> float:
        """Return how fast the error falls from a position to the next, which may be dense."""
        gained = self.errors[position + 1] - self.errors[position]
        return gained / (self.costs[position + 1] - self.costs[position])

    def best_rank(self, price: float) -> int:
        """Return the position of the rank where the error and the price of the cost are least together."""
        return bisect_right(self.slopes, -price)

    def best(self, price: float) -> int:
        """Return the same with dense among the choices."""
        at = self.best_rank(price)
        saved = price * (self.costs[self.dense] - self.costs[at])
        return self.dense if self.errors[at] > saved else at


def make_rate_curve(
    name: str, ranks: range, costs: Sequence[int], dense_cost: int, errors: Sequence[float]
) -> RateCurve:
    """Join the ranks that cost less than the dense weight with the dense weight itself.

    `costs` and `errors` are those of `ranks`: costs ascend, errors do not.
    """
    cheaper = next((at for at, cost in enumerate(costs) if cost >= dense_cost), len(ranks))
    costs, errors = costs[:cheaper], errors[:cheaper]
    steps = zip(pairwise(costs), pairwise(errors), strict=True)
    # Rounding alone could make one fall steeper than the one before it.
    slopes = accumulate(((e - d) / (b - a) for (a, b), (d, e) in steps), max)
    costs, errors = array("q", (*costs, dense_cost)), array("d", (*errors, 0.0))
    return RateCurve(name, ranks[:cheaper], costs, errors, array("d", slopes))


# Choices for the first layers that are kept, times the number of layers: small models are solved exactly, and
# one of hundreds of layers takes a second or two. Where that leaves fewer than are worth a search, the first
# guess is as good: one layer of thousands hardly counts.
WORK = 50_000
LEAST_KEPT = 32
# How many ranks to either side of the best one at the price.
REACH = 32
ROUNDING = 1e-9

# What the first layers cost, their regret, and their positions as nested pairs, the last one outermost.
Partial = tuple[int, float, Any]
# What one layer's choice costs, its regret, and its position.
Choice = tuple[int, float, int]


def search(
    curves: Sequence[RateCurve], price: float, capacity: int, *, below: float
) -> tuple[int, ...] | None:
    """Return the positions whose error is the least, or None where none was found below one that is known.

    It is the least there is unless more choices stay within the bound than are kept.
    """
    kept = WORK // max(1, len(curves))
    if kept < LEAST_KEPT:
        return None
    worths = [_worth(curve, curve.best(price), price) for curve in curves]
    allowed = below * (1 - ROUNDING) + price * capacity - sum(worths)
    limit = capacity - sum(curve.costs[0] for curve in curves)
    partials: list[Partial] = [(0, 0.0, None)]
    for curve, worth in zip(curves, worths, strict=True):
        # The layers that follow need at least what their cheapest choices cost.
        limit += curve.costs[0]
        choices = [choice for choice in _choices(curve, price, worth) if choice[1] < allowed]
        partials = _thinned(_efficient(_joined(partials, choices, allowed, limit), price), kept)
    best = min(partials, key=lambda partial: partial[1] - price * partial[0], default=None)
    return None if best is None else _positions(best[2])


def _worth(curve: RateCurve, at: int, price: float) -> float:
    return curve.errors[at] + price * curve.costs[at]


def _choices(curve: RateCurve, price: float, worth: float) -> Iterator[Choice]:
    middle = curve.best_rank(price)
    for at in {*range(max(0, middle - REACH), min(curve.dense, middle + REACH + 1)), curve.dense}:
        yield curve.costs[at], max(0.0, _worth(curve, at, price) - worth), at


def _joined(
    partials: Sequence[Partial], choices: Sequence[Choice], allowed: float, limit: int
) -> dict[int, tuple[float, Any]]:
    """Go on with every choice for one more layer; of those that cost the same, keep that of least regret."""
    joined: dict[int, tuple[float, Any]] = {}
    for before, regretted, path in partials:
        for more, worse, at in choices:
            cost, regret = before + more, regretted + worse
            if regret < allowed and cost <= limit and (cost not in joined or regret < joined[cost][0]):
                joined[cost] = regret, (path, at)
    return joined


def _efficient(joined: dict[int, tuple[float, Any]], price: float) -> list[Partial]:
    """Keep what has less error than all that costs less."""
    efficient, least = [], inf
    for cost in sorted(joined):
        regret, path = joined[cost]
        error = regret - price * cost  # but for a constant
        if error < least:
            efficient.append((cost, regret, path))
            least = error
    return efficient


def _thinned(partials: list[Partial], kept: int) -> list[Partial]:
    """Where there are too many, keep the one of least regret in each of equal intervals of cost."""
    if len(partials) <= kept:
        return partials
    first, last = partials[0][0], partials[-1][0]
    width = (last - first) // kept + 1
    best: dict[int, Partial] = {}
    for partial in partials:
        at = (partial[0] - first) // width
        if at not in best or partial[1] < best[at][1]:
            best[at] = partial
    return list(best.values())


def _positions(path: Any) -> tuple[int, ...]:
    positions = []
    while path is not None:
        path, at = path
        positions.append(at)
    return tuple(reversed(positions))


@dataclass(frozen=True, slots=True)
class Spending:
    """A choice for each layer, and the sum of their errors."""

    positions: tuple[int, ...]
    error: float


def allocate(curves: Sequence[RateCurve], capacity: int) -> dict[str, int | None]:
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


def _best(curves: Sequence[RateCurve], capacity: int) -> Spending:
    price = _price(curves, capacity)
    greedy = _filled(curves, [curve.best(price) for curve in curves], capacity)
    found = search(curves, price, capacity, below=greedy.error)
    if found is None:
        return greedy
    return min(greedy, _filled(curves, found, capacity), key=lambda spending: spending.error)


def _price(curves: Sequence[RateCurve], capacity: int) -> float:
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


def _filled(curves: Sequence[RateCurve], positions: Sequence[int], capacity: int) -> Spending:
    """Go on with whichever layer gains most for its cost, while its next step fits."""
    at = list(positions)
    left = capacity - sum(curve.costs[p] for curve, p in zip(curves, at, strict=True))
    steps = [(curve.slope(at[i]), i) for i, curve in enumerate(curves) if at[i] < curve.dense]
    heapify(steps)
    while steps:
        slope, i = heappop(steps)
        curve = curves[i]
        cost = curve.costs[at[i] + 1] - curve.costs[at[i]]
        if slope < 0 and cost <= left:
            at[i] += 1
            left -= cost
            if at[i] < curve.dense:
                heappush(steps, (curve.slope(at[i]), i))
    return Spending(tuple(at), sum(curve.errors[p] for curve, p in zip(curves, at, strict=True)))
