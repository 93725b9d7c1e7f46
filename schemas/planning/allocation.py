"""Distribute a budget over layers: choose a rank for each, or dense, so that the total error is smallest.

A price per unit of cost (a Lagrange multiplier, Everett 1963) gives a first allocation. Where there are few
enough layers, dynamic programming over the ranks near it finds a better one.
"""

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise
from math import inf
from typing import Any


@dataclass(frozen=True, slots=True)
class RateCurve:
    """The rate-distortion curve of one layer: cost and error of each choice, ordered by cost.

    The choices are the `ranks` and, last, the dense weight, which has no error. A choice is given by its
    position in `costs` and `errors`. `slopes` holds the change of the error per unit of cost from each rank
    to the next. Slopes are negative, and they ascend because singular values descend; so the best rank at a
    price is found by bisection.
    """

    name: str
    ranks: Sequence[int]
    costs: "array[int]"
    errors: "array[float]"
    slopes: "array[float]"

    @property
    def dense(self) -> int:
        """Position of the dense weight."""
        return len(self.ranks)

    def rank(self, position: int) -> int | None:
        """Return the rank at a position, or None for dense."""
        return self.ranks[position] if position < self.dense else None

    def cost(self, rank: int | None) -> int:
        """Return the cost of a rank, or of the dense weight for None."""
        return self.costs[self.dense if rank is None else self.ranks.index(rank)]

    def slope(self, position: int) -> float:
        """Return the change of the error per unit of cost from a position to the next, which may be dense."""
        gained = self.errors[position + 1] - self.errors[position]
        return gained / (self.costs[position + 1] - self.costs[position])

    def lagrangian(self, position: int, price: float) -> float:
        """Return error + price · cost."""
        return self.errors[position] + price * self.costs[position]

    def best_rank_position(self, price: float) -> int:
        """Return the position of the rank with the smallest error + price · cost."""
        return bisect_right(self.slopes, -price)

    def best_position(self, price: float) -> int:
        """Return the position of the choice with the smallest error + price · cost, dense included."""
        at = self.best_rank_position(price)
        saved = price * (self.costs[self.dense] - self.costs[at])
        return self.dense if self.errors[at] > saved else at


# How far from a price nearby the search looks first, as shares of it, widest first.
NEAR = (0.5, 0.03, 1e-3)
# Of more curves than this, the search begins near the price of a sample of at most so many.
SAMPLE = 500


def make_rate_curve(
    name: str, ranks: Sequence[int], costs: Sequence[int], dense_cost: int, errors: Sequence[float]
) -> RateCurve:
    """Build the curve of a layer from the costs and errors of its ranks.

    Costs ascend and errors descend with the rank. Ranks that cost as much as the dense weight are left out.
    """
    cheaper = next((at for at, cost in enumerate(costs) if cost >= dense_cost), len(ranks))
    costs, errors = costs[:cheaper], errors[:cheaper]
    steps = zip(pairwise(costs), pairwise(errors), strict=True)
    # Rounding alone could make a slope steeper than the one before it.
    slopes = accumulate(((e - d) / (b - a) for (a, b), (d, e) in steps), max)
    costs, errors = array("q", (*costs, dense_cost)), array("d", (*errors, 0.0))
    return RateCurve(name, ranks[:cheaper], costs, errors, array("d", slopes))


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice for each curve, by position, and the sum of their errors."""

    positions: tuple[int, ...]
    error: float


def allocate(
    curves: Sequence[RateCurve], capacity: int, *, price: float | None = None
) -> dict[str, int | None]:
    """Return a rank for each layer, or None for dense, by name; the total cost is at most the capacity.

    `price` is that of `lowest_price`, where it is known already. The order of the layers does not matter. No
    layer's next step fits into the capacity that is left, unless that step would not lower its error.

    Raises
    ------
    ValueError
        If the cheapest choices together cost more than the capacity.
    """
    if sum(curve.costs[0] for curve in curves) > capacity:
        raise ValueError("the cheapest choices together cost more than the capacity")
    ordered = sorted(curves, key=lambda curve: curve.name)
    best = _allocate_positions(ordered, capacity, lowest_price(curves, capacity) if price is None else price)
    return {curve.name: curve.rank(at) for curve, at in zip(ordered, best.positions, strict=True)}


def _allocate_positions(curves: Sequence[RateCurve], capacity: int, price: float) -> Allocation:
    greedy = _fill(curves, [curve.best_position(price) for curve in curves], capacity)
    found = _search(curves, price, capacity, below=greedy.error)
    if found is None:
        return greedy
    return min(greedy, _fill(curves, found, capacity), key=lambda allocation: allocation.error)


def lowest_price(curves: Sequence[RateCurve], capacity: int, *, near: float | None = None) -> float:
    """Return the lowest price at which the best choices of all layers fit, exact to the last bit.

    With a price of a similar capacity, `near`, the search is faster and finds the same.
    """
    # Positive doubles sort like the integers with the same bits, so the bits can be bisected. At an infinite
    # price each layer takes its cheapest choice, at the lowest it stays dense.
    low, high = 1, _bits(inf)
    if near is None and len(curves) > SAMPLE:
        sample = curves[:: -(-len(curves) // SAMPLE)]
        near = lowest_price(sample, capacity * len(sample) // len(curves))
    first = [near * (1 + far) for share in NEAR for far in (share, -share)] if near is not None else []
    trials = [bits for bits in map(_bits, first) if low <= bits < high]
    settled = sum(curve.costs[0] for curve in curves if curve.dense == 0)
    # The layers whose choice is not the same at both ends, with these choices.
    moving = [(curve, curve.dense, 0) for curve in curves if curve.dense > 0]
    while low < high:
        middle = trials.pop() if trials else (low + high) // 2
        price = _double(middle)
        chosen = [(curve, curve.best_position(price)) for curve, _, _ in moving]
        if settled + sum(curve.costs[at] for curve, at in chosen) <= capacity:
            high = middle
            ends = [(curve, most, at) for (curve, at), (_, most, _) in zip(chosen, moving, strict=True)]
        else:
            low = middle + 1
            ends = [(curve, at, least) for (curve, at), (_, _, least) in zip(chosen, moving, strict=True)]
        trials = [bits for bits in trials if low <= bits < high]
        settled += sum(curve.costs[most] for curve, most, least in ends if most == least)
        moving = [end for end in ends if end[1] != end[2]]
    return _double(low)


def _bits(value: float) -> int:
    return int.from_bytes(struct.pack(">d", value))


def _double(bits: int) -> float:
    value: float = struct.unpack(">d", bits.to_bytes(8))[0]
    return value


def _fill(curves: Sequence[RateCurve], positions: Sequence[int], capacity: int) -> Allocation:
    """Spend the remaining capacity greedily: always on the step that lowers the error most for its cost."""
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
    return Allocation(tuple(at), sum(curve.errors[p] for curve, p in zip(curves, at, strict=True)))


# The dynamic program. A state is a choice for each of the first layers. Its regret is the excess of its
# error + price · cost over the best possible for these layers.

# States held after each layer, times the number of layers: small models are solved exactly, and a model of
# hundreds of layers takes a second or two. Where fewer than MIN_STATES would be held, the search is skipped:
# the greedy allocation is as good there, since one layer of thousands hardly matters.
MAX_STATES = 50_000
MIN_STATES = 32
# How many ranks are tried on either side of the best one at the price.
WINDOW = 32
# An allocation must improve the error by more than this share to be searched for.
ROUNDING = 1e-9

# Cost of the first layers, their regret, and their positions as nested pairs with the last layer outermost.
State = tuple[int, float, Any]
# Cost, regret and position of one layer's choice.
Choice = tuple[int, float, int]


def _search(
    curves: Sequence[RateCurve], price: float, capacity: int, *, below: float
) -> tuple[int, ...] | None:
    """Return the positions with the smallest error, or None if none has an error below the given one.

    The result is the best possible one unless states had to be dropped for their number.
    """
    limit = MAX_STATES // max(1, len(curves))
    if limit < MIN_STATES:
        return None
    smallest = [curve.lagrangian(curve.best_position(price), price) for curve in curves]
    # By duality, an allocation with more regret than this has an error above `below`.
    max_regret = below * (1 - ROUNDING) + price * capacity - sum(smallest)
    max_cost = capacity - sum(curve.costs[0] for curve in curves)
    states: list[State] = [(0, 0.0, None)]
    for curve, least in zip(curves, smallest, strict=True):
        # The layers that follow cost at least as much as their cheapest choices.
        max_cost += curve.costs[0]
        choices = [choice for choice in _choices(curve, price, least) if choice[1] < max_regret]
        states = _thin(_efficient(_extend(states, choices, max_regret, max_cost), price), limit)
    best = min(states, key=lambda state: state[1] - price * state[0], default=None)
    return None if best is None else _positions(best[2])


def _choices(curve: RateCurve, price: float, least: float) -> Iterator[Choice]:
    middle = curve.best_rank_position(price)
    for at in {*range(max(0, middle - WINDOW), min(curve.dense, middle + WINDOW + 1)), curve.dense}:
        yield curve.costs[at], max(0.0, curve.lagrangian(at, price) - least), at


def _extend(
    states: Sequence[State], choices: Sequence[Choice], max_regret: float, max_cost: int
) -> dict[int, tuple[float, Any]]:
    """Extend each state by each choice of one more layer; return the smallest regret and its path by cost."""
    extended: dict[int, tuple[float, Any]] = {}
    for cost_before, regret_before, path in states:
        for cost_more, regret_more, at in choices:
            cost, regret = cost_before + cost_more, regret_before + regret_more
            if (
                regret < max_regret
                and cost <= max_cost
                and (cost not in extended or regret < extended[cost][0])
            ):
                extended[cost] = regret, (path, at)
    return extended


def _efficient(extended: dict[int, tuple[float, Any]], price: float) -> list[State]:
    """Drop each state that a cheaper one equals or beats in error."""
    efficient, least = [], inf
    for cost in sorted(extended):
        regret, path = extended[cost]
        error = regret - price * cost  # up to a constant
        if error < least:
            efficient.append((cost, regret, path))
            least = error
    return efficient


def _thin(states: list[State], limit: int) -> list[State]:
    """If there are too many states, take the one with the smallest regret in each interval of cost."""
    if len(states) <= limit:
        return states
    first, last = states[0][0], states[-1][0]
    width = (last - first) // limit + 1
    best: dict[int, State] = {}
    for state in states:
        at = (state[0] - first) // width
        if at not in best or state[1] < best[at][1]:
            best[at] = state
    return list(best.values())


def _positions(path: Any) -> tuple[int, ...]:
    positions = []
    while path is not None:
        path, at = path
        positions.append(at)
    return tuple(reversed(positions))
