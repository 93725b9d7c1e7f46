"""schemas/planning/allocation.py: allocations are as good as the exact optimum or a lower bound."""

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest

from schemas.planning.allocation import SAMPLE, allocate, lowest_price
from schemas.planning.forms import FORMS, FormOptions
from schemas.planning.rate_curve import Candidate, make_rate_curve
from schemas.spectrum import squared_tails

BUDGETS = (0.2, 0.3, 0.5, 0.7, 0.85, 0.95)


@dataclass(frozen=True)
class Layer:
    """A layer of a small model with its rate curve."""

    rows: int
    columns: int
    curve: object

    @property
    def dense_cost(self):
        return self.rows * self.columns


def spectrum(rng, count):
    kind = rng.choice(["power", "exponential", "random", "flat", "low rank"])
    if kind == "power":
        exponent = rng.uniform(0.2, 1.5)
        return [(i + 1) ** -exponent for i in range(count)]
    if kind == "exponential":
        rate = rng.uniform(0.02, 0.3)
        return [math.exp(-rate * i) for i in range(count)]
    if kind == "random":
        return sorted((rng.random() for _ in range(count)), reverse=True)
    return [1.0 if kind == "flat" or i < count / 4 else 0.0 for i in range(count)]


def make_layer(rng, name, *, factors=2, align=1, least=1, low=8, high=48):
    rows, columns = rng.randint(low, high), rng.randint(low, high)
    tails = squared_tails(spectrum(rng, min(rows, columns)), 1.0)
    form = FORMS["cur" if factors == 3 else "svd"].of(FormOptions(storage="three"))
    ranks = form.ranks((rows, columns), align=align, least=least)
    costs = [form.parameters((rows, columns), rank) for rank in ranks]
    errors = [tails[rank] / tails[0] for rank in ranks]
    return Layer(rows, columns, one_form(name, ranks, costs, rows * columns, errors))


def model(rng, count=5, **kind):
    return [make_layer(rng, f"layer.{i}", **kind) for i in range(count)]


def one_form(name, ranks, costs, dense_cost, errors):
    return make_rate_curve(name, (Candidate(0, ranks, costs, errors),), dense_cost)


def allocate_ranks(curves, capacity):
    choices = allocate(curves, capacity)
    return {name: None if choice is None else choice.rank for name, choice in choices.items()}


def spent(layers, ranks):
    """Return cost and error of an allocation."""
    cost, error = 0, 0.0
    for layer in layers:
        curve = layer.curve
        rank = ranks[curve.name]
        at = curve.dense if rank is None else curve.ranks.index(rank)
        cost, error = cost + curve.costs[at], error + curve.errors[at]
    return cost, error


def optimum(layers, capacity):
    """Find the smallest error by dynamic programming over every cost."""
    best = np.zeros(capacity + 1)
    for layer in layers:
        following = np.full(capacity + 1, np.inf)
        for cost, error in zip(layer.curve.costs, layer.curve.errors, strict=True):
            if cost <= capacity:
                following[cost:] = np.minimum(following[cost:], best[: capacity + 1 - cost] + error)
        best = following
    return float(best[capacity])


def capacity_of(layers, budget):
    return int(budget * sum(layer.dense_cost for layer in layers))


KINDS = [{}, {"factors": 3}, {"align": 4}, {"least": 5}, {"low": 4, "high": 12}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_error_of_a_small_model_is_the_optimum(budget, kind):
    compared = 0
    for seed in range(40):
        layers = model(random.Random(seed), **kind)
        capacity = capacity_of(layers, budget)
        if sum(layer.curve.costs[0] for layer in layers) > capacity:
            continue
        cost, error = spent(layers, allocate_ranks([layer.curve for layer in layers], capacity))
        best = optimum(layers, capacity)
        assert cost <= capacity
        assert error == pytest.approx(best, rel=1e-8, abs=1e-12)
        compared += 1

    assert compared or budget < 0.3


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_the_error_of_many_layers_is_close_to_a_lower_bound(budget):
    layers = model(random.Random(11), 100, low=60, high=200)
    capacity = capacity_of(layers, budget)
    _, error = spent(layers, allocate_ranks([layer.curve for layer in layers], capacity))

    def bound(price):
        """Return a lower bound of the error by Lagrangian duality."""
        curves = [layer.curve for layer in layers]
        paid = (min(np.array(curve.errors) + price * np.array(curve.costs)) for curve in curves)
        return sum(paid) - price * capacity

    assert error <= 1.002 * max(bound(10**exponent) for exponent in np.arange(-9, -2, 0.01))


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_of_any_layer_fits_into_the_capacity_left(kind):
    for seed in range(100):
        rng = random.Random(seed)
        layers = model(rng, rng.randint(1, 12), **kind)
        least = sum(layer.curve.costs[0] for layer in layers)
        capacity = rng.randint(least, capacity_of(layers, 1.1) + least)
        ranks = allocate_ranks([layer.curve for layer in layers], capacity)
        left = capacity - spent(layers, ranks)[0]
        assert left >= 0
        for layer in layers:
            curve = layer.curve
            rank = ranks[curve.name]
            if rank is not None:
                at = curve.ranks.index(rank)
                gains = curve.errors[at] > curve.errors[at + 1]
                assert not gains or curve.costs[at + 1] - curve.costs[at] > left


def test_an_allocation_is_never_worse_than_the_same_ratio_for_every_layer():
    for seed in range(200):
        rng = random.Random(seed)
        layers = model(rng, rng.randint(2, 8))
        budget = rng.uniform(0.1, 1.0)
        uniform = {}
        for layer in layers:
            fitting = [
                k
                for k, cost in zip(layer.curve.ranks, layer.curve.costs, strict=False)
                if cost <= budget * layer.dense_cost
            ]
            uniform[layer.curve.name] = fitting[-1] if fitting else layer.curve.ranks[0]
        cost, error = spent(layers, uniform)
        capacity = max(cost, capacity_of(layers, budget))
        assert spent(layers, allocate_ranks([x.curve for x in layers], capacity))[1] <= error * (1 + 1e-12)


def test_a_larger_budget_never_has_a_larger_error():
    for seed in range(60):
        rng = random.Random(seed)
        layers = model(rng)
        capacity = capacity_of(layers, 0.25)
        curves = [layer.curve for layer in layers]
        if sum(curve.costs[0] for curve in curves) > capacity:
            continue
        before = math.inf
        while capacity < capacity_of(layers, 1):
            error = spent(layers, allocate_ranks(curves, capacity))[1]
            assert error <= before * (1 + 1e-12)
            before, capacity = error, capacity + rng.randint(1, 400)


def test_the_order_of_the_layers_does_not_matter():
    for seed in range(50):
        rng = random.Random(seed)
        # Equal layers make ties.
        curves = [layer.curve for layer in model(rng, 4)]
        curves += [one_form(c.name + "'", c.ranks, c.costs[:-1], c.costs[-1], c.errors[:-1]) for c in curves]
        capacity = sum(curve.costs[-1] for curve in curves) // 2
        ranks = allocate_ranks(curves, capacity)
        assert allocate_ranks(rng.sample(curves, len(curves)), capacity) == ranks


def test_a_layer_that_weighs_more_gets_no_less():
    for seed in range(50):
        rng = random.Random(seed)
        layers = model(rng)
        curves = [layer.curve for layer in layers]
        first = curves[0]
        heavy = one_form(
            first.name,
            first.ranks,
            first.costs[:-1],
            first.costs[-1],
            [100 * error for error in first.errors[:-1]],
        )
        capacity = capacity_of(layers, 0.5)
        plain, weighed = (allocate_ranks([one, *curves[1:]], capacity)[first.name] for one in (first, heavy))
        assert weighed is None or (plain is not None and weighed >= plain)


def test_a_budget_for_everything_keeps_everything_dense():
    layers = model(random.Random(3), 6)
    ranks = allocate_ranks([layer.curve for layer in layers], capacity_of(layers, 1))

    assert all(spent([layer], {layer.curve.name: ranks[layer.curve.name]})[1] == 0 for layer in layers)


def test_a_step_that_lowers_no_error_is_not_taken():
    zero = one_form("zero", range(1, 5), [16, 32, 48, 60], 64, [0.0] * 4)
    exact = one_form("exact", range(1, 5), [16, 32, 48, 60], 64, [0.5, 0.0, 0.0, 0.0])

    assert allocate_ranks([zero, exact], 10_000) == {"zero": 1, "exact": 2}


def test_a_layer_without_ranks_is_dense_and_no_layers_give_no_ranks():
    only_dense = one_form("dense", range(0), [], 64, [])
    dearer = one_form("dearer", range(1, 3), [64, 80], 64, [0.5, 0.1])

    assert allocate_ranks([only_dense, dearer], 128) == {"dense": None, "dearer": None}
    assert allocate_ranks([], 0) == {}


def test_a_budget_below_the_cheapest_choices_is_refused():
    curve = one_form("a", range(1, 3), [16, 32], 64, [0.5, 0.1])

    assert allocate_ranks([curve], 16) == {"a": 1}
    with pytest.raises(ValueError, match="more than the capacity"):
        allocate_ranks([curve], 15)


def test_the_tails_are_the_squared_errors_that_truncation_leaves():
    tails = squared_tails([3e200, 4e100, 1.0], 1e200)

    assert len(tails) == 4
    assert tails[0] == pytest.approx(9.0)
    assert tails[1:].tolist() == [pytest.approx(16e-200), 0.0, 0.0]


@pytest.mark.parametrize("copies", [1, SAMPLE])
@pytest.mark.parametrize("seed", range(10))
def test_the_lowest_price_is_that_at_which_all_choices_fit_wherever_the_search_begins(seed, copies):
    rng = random.Random(seed)
    curves = [layer.curve for layer in model(rng, rng.randint(1, 12)) for _ in range(copies)]
    least, most = (sum(curve.costs[at] for curve in curves) for at in (0, -1))
    capacity = rng.randint(least, most)

    def fits(price):
        return sum(curve.costs[curve.best_position(price)] for curve in curves) <= capacity

    price = lowest_price(curves, capacity)
    assert fits(price)
    assert price == math.ulp(0.0) or not fits(math.nextafter(price, 0.0))
    for near in (price * 1.0001, price * 0.9999, price * 2, price / 1e9, 1e300, 5e-324):
        assert lowest_price(curves, capacity, near=near) == price
