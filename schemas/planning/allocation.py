"""Distribute a budget over layers: choose form and rank of each, or dense, for the smallest total error.

A price per unit of cost (a Lagrange multiplier, Everett 1963) gives a first allocation, and a bound that none
can beat. Where there are few enough layers, dynamic programming over the choices near it finds a better one.
"""

import struct
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, nsmallest
from math import fsum, inf, nextafter
from operator import itemgetter
from typing import Any

from schemas.planning.rate_curve import Choice, RateCurve

# How far from a price nearby the search looks first, as shares of it, widest first.
NEAR = (0.5, 0.03, 1e-3)
# Of more curves than this, the search begins near the price of a sample of at most so many.
SAMPLE = 500


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice for each curve, by position, and the sum of their errors."""

    positions: tuple[int, ...]
    error: float


def allocate(
    curves: Sequence[RateCurve], capacity: int, *, price: float | None = None
) -> dict[str, Choice | None]:
    """Return a choice for each layer, or None for dense, by name; the total cost is at most the capacity.

    `price` is that of `lowest_price`, where it is known already. The order of the layers does not matter. No
    layer's next step fits into the capacity that is left, unless that step would not lower its error. The
    total error is at most that of the same layers with one form only, whichever it is.

    Raises
    ------
    ValueError
        If the cheapest choices together cost more than the capacity.
    """
    if _least_cost(curves) > capacity:
        raise ValueError("the cheapest choices together cost more than the capacity")
    ordered = sorted(curves, key=lambda curve: curve.name)
    price = lowest_price(curves, capacity) if price is None else price
    best = _allocate_positions(ordered, capacity, price)
    best = _improve_by_one_form(ordered, capacity, price, best)
    return {curve.name: curve.choice(at) for curve, at in zip(ordered, best.positions, strict=True)}


def lower_bound(curves: Sequence[RateCurve], capacity: int) -> float:
    """Return a total error that no allocation of this capacity is below, by Lagrangian duality.

    It is infinite where no allocation fits.
    """
    if _least_cost(curves) > capacity:
        return inf
    return max(0.0, _bound_at(curves, capacity, lowest_price(curves, capacity)))


def undecided(
    curves: Sequence[RateCurve], capacity: int, exact: Mapping[str, Collection[int]]
) -> set[tuple[str, int]]:
    """Return the layers and forms whose exact errors the allocation depends on and lacks.

    `exact` names the forms with exact errors by layer; the errors of all others are lower bounds. Asked again
    with the exact errors of what it returned until that is nothing, `allocate` on the same curves uses exact
    errors alone, and no form that was left out could have lowered the Lagrangian optimum.
    """
    price = lowest_price(curves, capacity)
    # Just below the price lies the other end of the step that exceeds the capacity.
    prices = (price, nextafter(price, 0.0))
    best = ((curve.name, curve.choice(curve.best_position(at))) for curve in curves for at in prices)
    return _inexact(best, exact) or _inexact(allocate(curves, capacity, price=price).items(), exact)


def _inexact(
    choices: Iterable[tuple[str, Choice | None]], exact: Mapping[str, Collection[int]]
) -> set[tuple[str, int]]:
    return {
        (name, choice.form)
        for name, choice in choices
        if choice is not None and choice.form not in exact.get(name, ())
    }


def _bound_at(curves: Sequence[RateCurve], capacity: int, price: float) -> float:
    """Return the lower bound of the total error that a price gives; it is highest at the lowest price."""
    paid = [curve.lagrangian(curve.best_position(price), price) for curve in curves]
    # Each term is rounded a few times, and the sum must not be rounded up.
    rounding = 2.0**-50 * (fsum(paid) + price * capacity)
    return fsum((*paid, -price * capacity, -rounding))


def _least_cost(curves: Sequence[RateCurve]) -> int:
    return sum(curve.costs[0] for curve in curves)


def _allocate_positions(curves: Sequence[RateCurve], capacity: int, price: float) -> Allocation:
    greedy = _fill(curves, [curve.best_position(price) for curve in curves], capacity)
    found = _search(curves, price, capacity, below=greedy.error)
    if found is None:
        return greedy
    return min(greedy, _fill(curves, found, capacity), key=lambda allocation: allocation.error)


def _improve_by_one_form(
    curves: Sequence[RateCurve], capacity: int, price: float, best: Allocation
) -> Allocation:
    """Return the allocation, or a better one that begins with that of a single form."""
    forms = {form for curve in curves for form in (curve.alone or curve.forms[:1])}
    for form in sorted(forms) if len(forms) > 1 else ():
        alone = [curve.only(form) for curve in curves]
        # Forms that another beats in many layers have too high a bound at the common price already.
        if _bound_at(alone, capacity, price) >= best.error or _least_cost(alone) > capacity:
            continue
        one = _allocate_positions(alone, capacity, lowest_price(alone, capacity))
        costs = (curve.costs[at] for curve, at in zip(alone, one.positions, strict=True))
        # The dearest choice within a cost has the smallest error.
        begin = [bisect_right(curve.costs, cost) - 1 for curve, cost in zip(curves, costs, strict=True)]
        best = min(best, _fill(curves, begin, capacity), key=lambda allocation: allocation.error)
    return best


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
    steps = [_step(curve, at[i], i) for i, curve in enumerate(curves) if at[i] < curve.dense]
    heapify(steps)
    while steps:
        slope, i, to = heappop(steps)
        curve = curves[i]
        cost = curve.costs[to] - curve.costs[at[i]]
        if slope < 0 and cost <= left:
            at[i] = to
            left -= cost
            if to < curve.dense:
                heappush(steps, _step(curve, to, i))
        elif to > at[i] + 1:
            # Too long a step: those to the choices above the hull are shorter.
            heappush(steps, (curve.slope(at[i], at[i] + 1), i, at[i] + 1))
    return Allocation(tuple(at), sum(curve.errors[p] for curve, p in zip(curves, at, strict=True)))


def _step(curve: RateCurve, position: int, number: int) -> tuple[float, int, int]:
    """Return the slope of the step to the next position on the hull, the curve's number, and the position."""
    to = curve.successor(position)
    return curve.slope(position, to), number, to


# The dynamic program. A state is a choice for each of the first layers. Its regret is the excess of its
# error + price · cost over the best possible for these layers.

# States held after each layer, times the number of layers: small models are solved exactly, and a model of
# hundreds of layers takes a second or two. Where fewer than MIN_STATES would be held, the search is skipped:
# the greedy allocation is as good there, since one layer of thousands hardly matters.
MAX_STATES = 50_000
MIN_STATES = 32
# How many choices are tried on either side of the best one at the price, and how many of all forms together.
WINDOW = 32
MAX_CHOICES = 4 * WINDOW
# An allocation must improve the error by more than this share to be searched for.
ROUNDING = 1e-9

# Cost of the first layers, their regret, and their positions as nested pairs with the last layer outermost.
State = tuple[int, float, Any]
# Cost, regret and position of one layer's choice.
Option = tuple[int, float, int]


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
        options = [option for option in _options(curve, price, least) if option[1] < max_regret]
        options = nsmallest(MAX_CHOICES, options, key=itemgetter(1))
        states = _thin(_efficient(_extend(states, options, max_regret, max_cost), price), limit)
    best = min(states, key=lambda state: state[1] - price * state[0], default=None)
    return None if best is None else _positions(best[2])


def _options(curve: RateCurve, price: float, least: float) -> Iterator[Option]:
    hull, middle = curve.hull, bisect_right(curve.slopes, -price)
    first = hull[middle - 1] + 1 - WINDOW if middle > 0 else 0
    last = hull[middle + 1] - 1 + WINDOW if middle + 1 < len(hull) else curve.dense - 1
    near = range(max(0, first), min(curve.dense, last + 1))
    for at in {*near, *hull[max(0, middle - WINDOW) : middle + WINDOW + 1], curve.dense}:
        yield curve.costs[at], max(0.0, curve.lagrangian(at, price) - least), at


def _extend(
    states: Sequence[State], options: Sequence[Option], max_regret: float, max_cost: int
) -> dict[int, tuple[float, Any]]:
    """Extend each state by each option of one more layer; return the smallest regret and its path by cost.

    The options ascend in regret.
    """
    extended: dict[int, tuple[float, Any]] = {}
    for cost_before, regret_before, path in states:
        for cost_more, regret_more, at in options:
            regret = regret_before + regret_more
            if regret >= max_regret:
                break
            cost = cost_before + cost_more
            if cost <= max_cost and (cost not in extended or regret < extended[cost][0]):
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
