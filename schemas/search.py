"""The exact search for the best way to spend a budget, among the choices that a bound leaves.

Layer by layer it keeps every choice so far that no other beats in both cost and error (dynamic
programming). The bound keeps that short: at the price where the budget is met each layer has a best choice,
and what another one is worse by, its regret, is lost for good. Regrets add up, so a choice is dropped as
soon as they come to more than a first guess leaves to be won.
"""

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

from schemas.curve import Curve

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


def search(curves: Sequence[Curve], price: float, capacity: int, *, below: float) -> tuple[int, ...] | None:
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


def _worth(curve: Curve, at: int, price: float) -> float:
    return curve.errors[at] + price * curve.costs[at]


def _choices(curve: Curve, price: float, worth: float) -> Iterator[Choice]:
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
