"""The rate-distortion curve of a layer: cost and error of each choice, of one form or of several."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import inf
from typing import NamedTuple

# A slope may be steeper than the one before it by this share of the steepest, from rounding.
ROUNDING = 1e-9


class Choice(NamedTuple):
    """What a layer gets unless it stays dense: a form, by a small number of the caller's, and its rank."""

    form: int
    rank: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A form that a layer may get: its ranks, with the cost of each, ascending, and the error of each."""

    form: int
    ranks: Sequence[int]
    costs: Sequence[int]
    errors: Sequence[float]


@dataclass(frozen=True, slots=True)
class RateCurve:
    """The rate-distortion curve of one layer: cost and error of each choice, ordered by cost.

    Last comes the dense weight, which has no error. A choice is given by its position in `costs` and
    `errors`; `forms` and `ranks` say what it is. `hull` holds the positions on the lower convex hull of all
    choices but dense, and `slopes` the change of the error per unit of cost from each of these to the next.
    Slopes are negative and ascend, so the best position at a price is found by bisection.
    """

    name: str
    forms: Sequence[int]
    ranks: Sequence[int]
    costs: "array[int]"
    errors: "array[float]"
    hull: Sequence[int]
    slopes: "array[float]"
    # The curve of each form alone, where there are several.
    alone: "Mapping[int, RateCurve]" = field(default_factory=dict)

    @property
    def dense(self) -> int:
        """Position of the dense weight."""
        return len(self.ranks)

    def choice(self, position: int) -> Choice | None:
        """Return the choice at a position, or None for dense."""
        return Choice(self.forms[position], self.ranks[position]) if position < self.dense else None

    def cost(self, choice: Choice | None) -> int:
        """Return the cost of a choice of this curve, or of the dense weight for None."""
        return self.costs[self._position(choice)]

    def error(self, choice: Choice | None) -> float:
        """Return the error of a choice of this curve, or of the dense weight for None."""
        return self.errors[self._position(choice)]

    def only(self, form: int) -> "RateCurve":
        """Return the curve with the choices of one form, and dense."""
        if not self.alone and self.forms and self.forms[0] == form:
            return self
        none = Candidate(form, (), (), ())
        return self.alone.get(form) or make_rate_curve(self.name, (none,), self.costs[self.dense])

    def slope(self, position: int, to: int) -> float:
        """Return the change of the error per unit of cost from a position to a later one."""
        return (self.errors[to] - self.errors[position]) / (self.costs[to] - self.costs[position])

    def successor(self, position: int) -> int:
        """Return the next position on the hull, or dense behind its last."""
        if isinstance(self.hull, range):
            return position + 1
        at = bisect_right(self.hull, position)
        return self.hull[at] if at < len(self.hull) else self.dense

    def lagrangian(self, position: int, price: float) -> float:
        """Return error + price · cost."""
        return self.errors[position] + price * self.costs[position]

    def best_position(self, price: float) -> int:
        """Return the position of the choice with the smallest error + price · cost, dense included."""
        at = self.hull[bisect_right(self.slopes, -price)]
        saved = price * (self.costs[-1] - self.costs[at])
        return self.dense if self.errors[at] > saved else at

    def _position(self, choice: Choice | None) -> int:
        if choice is None:
            return self.dense
        at = self.ranks.index(choice.rank)
        while self.forms[at] != choice.form:
            at = self.ranks.index(choice.rank, at + 1)
        return at


def make_rate_curve(name: str, candidates: Sequence[Candidate], dense_cost: int) -> RateCurve:
    """Build the curve of a layer from the forms that it may get, each given once.

    Choices that cost as much as the dense weight are left out. So are those that another equals or beats in
    both cost and error, unless there is only one form, and it is convex.
    """
    cheaper = [_cheaper(candidate, dense_cost) for candidate in candidates]
    if len(cheaper) == 1:
        return _convex_curve(name, cheaper[0], dense_cost) or _any_curve(name, cheaper, dense_cost)
    alone = {candidate.form: make_rate_curve(name, (candidate,), dense_cost) for candidate in cheaper}
    return _any_curve(name, cheaper, dense_cost, alone)


def _cheaper(candidate: Candidate, dense_cost: int) -> Candidate:
    count = bisect_left(candidate.costs, dense_cost)
    if count == len(candidate.ranks):
        return candidate
    ranks, costs, errors = candidate.ranks[:count], candidate.costs[:count], candidate.errors[:count]
    return Candidate(candidate.form, ranks, costs, errors)


def _convex_curve(name: str, candidate: Candidate, dense_cost: int) -> RateCurve | None:
    """Return the curve of one form all of whose choices are on the hull, or None if they are not."""
    count, costs, errors = len(candidate.ranks), candidate.costs, candidate.errors
    if len(set(costs)) < count:
        return None
    steps = zip(pairwise(costs), pairwise(errors), strict=True)
    steepness = [(e - d) / (b - a) for (a, b), (d, e) in steps]
    # Rounding alone could make a slope steeper than the one before it.
    slopes = list(accumulate(steepness, max))
    if slopes != steepness:
        excess = max(most - slope for most, slope in zip(slopes, steepness, strict=True))
        if excess > -ROUNDING * min(steepness):
            return None
    return RateCurve(
        name,
        array("h", (candidate.form,)) * count,
        candidate.ranks,
        array("q", (*costs, dense_cost)),
        array("d", (*errors, 0.0)),
        range(max(1, count)),
        array("d", slopes),
    )


def _any_curve(
    name: str,
    candidates: Iterable[Candidate],
    dense_cost: int,
    alone: Mapping[int, RateCurve] | None = None,
) -> RateCurve:
    """Return the curve of the choices that no other equals or beats in both cost and error."""
    choices = sorted(
        choice
        for each in candidates
        for choice in zip(each.costs, each.errors, [each.form] * len(each.ranks), each.ranks, strict=True)
    )
    forms, ranks, costs, errors = array("h"), array("q"), array("q"), array("d")
    least = inf
    for cost, error, form, rank in choices:
        if error < least:
            least = error
            forms.append(form)
            ranks.append(rank)
            costs.append(cost)
            errors.append(error)
    hull, slopes = _lower_hull(costs, errors)
    costs.append(dense_cost)
    errors.append(0.0)
    return RateCurve(name, forms, ranks, costs, errors, hull, slopes, alone or {})


def _lower_hull(costs: Sequence[int], errors: Sequence[float]) -> tuple["array[int]", "array[float]"]:
    """Return the positions on the lower convex hull, and the slopes between them (Andrew 1979)."""
    hull, slopes = array("q", (0,)), array("d")
    for at in range(1, len(costs)):
        while True:
            slope = (errors[at] - errors[hull[-1]]) / (costs[at] - costs[hull[-1]])
            if not slopes or slopes[-1] < slope:
                break
            hull.pop()
            slopes.pop()
        hull.append(at)
        slopes.append(slope)
    return hull, slopes
