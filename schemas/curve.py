"""One layer's choices under a budget: the ranks it may have and dense, with what each costs and loses."""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True, slots=True)
class Curve:
    """What a layer may become, the cheapest first; the last choice is to keep it dense, without an error.

    `falls` is how fast the error falls from each rank to the next, per unit of cost: negative and, because
    singular values descend, ascending. So what a price per unit of cost buys is found by bisection.
    """

    name: str
    ranks: range
    costs: "array[int]"
    errors: "array[float]"
    falls: "array[float]"

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

    def fall(self, position: int) -> float:
        """Return how fast the error falls from a position to the next, which may be dense."""
        gained = self.errors[position + 1] - self.errors[position]
        return gained / (self.costs[position + 1] - self.costs[position])

    def best_rank(self, price: float) -> int:
        """Return the position of the rank where the error and the price of the cost are least together."""
        return bisect_right(self.falls, -price)

    def best(self, price: float) -> int:
        """Return the same with dense among the choices."""
        at = self.best_rank(price)
        saved = price * (self.costs[self.dense] - self.costs[at])
        return self.dense if self.errors[at] > saved else at


def make_curve(
    name: str, ranks: range, costs: Sequence[int], dense_cost: int, errors: Sequence[float]
) -> Curve:
    """Join the ranks that cost less than the dense weight with the dense weight itself.

    `costs` and `errors` are those of `ranks`: costs ascend, errors do not.
    """
    cheaper = next((at for at, cost in enumerate(costs) if cost >= dense_cost), len(ranks))
    costs, errors = costs[:cheaper], errors[:cheaper]
    steps = zip(pairwise(costs), pairwise(errors), strict=True)
    # Rounding alone could make one fall steeper than the one before it.
    falls = accumulate(((e - d) / (b - a) for (a, b), (d, e) in steps), max)
    costs, errors = array("q", (*costs, dense_cost)), array("d", (*errors, 0.0))
    return Curve(name, ranks[:cheaper], costs, errors, array("d", falls))


def squared_tails(spectrum: Sequence[float], scale: float = 1.0) -> "array[float]":
    """Return the sums of the squares of all but the first 0, 1, … singular values, in units of scale².

    They are summed from the small end, as the numerics do.
    """
    squares = (sigma * sigma for sigma in (value / scale for value in reversed(spectrum)))
    tails = array("d", accumulate(squares, initial=0.0))
    tails.reverse()
    return tails
