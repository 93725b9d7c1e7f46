"""schemas/planning/allocation.py over several forms: optimal, and never worse than one form alone."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.planning.allocation import MAX_STATES, MIN_STATES, allocate, lower_bound, lowest_price, undecided
from schemas.planning.rate_curve import Candidate, make_rate_curve
from tests.schemas.planning.rate_curves import (
    BITS,
    INT4,
    INT8,
    SVD,
    choices_of,
    curves_of,
    layers,
    least_error,
    model,
)

FORMS = {SVD, *BITS}
SHARES = (0.1, 0.15, 0.2, 0.24, 0.3)


def spent(curves, choices):
    """Return cost and error of an allocation."""
    cost = sum(curve.cost(choices[curve.name]) for curve in curves)
    return cost, sum(curve.error(choices[curve.name]) for curve in curves)


def fits(curves, capacity):
    return sum(curve.costs[0] for curve in curves) <= capacity


def better_that_fit(drawn, curves, choices, capacity):
    """Return the layers for which the capacity left suffices for a choice of less error."""
    left = capacity - spent(curves, choices)[0]
    chosen = [(curve.cost(at), curve.error(at)) for curve in curves for at in [choices[curve.name]]]
    return [
        layer[0]
        for layer, (cost, error) in zip(drawn, chosen, strict=True)
        if any(e < error and c <= cost + left for c, e in choices_of(layer))
    ]


@st.composite
def problems(draw):
    drawn = draw(layers())
    least, most = (sum(bound(choices_of(layer))[0] for layer in drawn) for bound in (min, max))
    return drawn, draw(st.integers(least, most))


@given(problems())
def test_the_error_of_a_small_model_is_the_optimum_and_not_below_the_bound(problem):
    drawn, capacity = problem
    curves = curves_of(drawn)
    cost, error = spent(curves, allocate(curves, capacity))
    best = least_error(drawn, capacity)

    assert cost <= capacity
    assert error == pytest.approx(best, rel=1e-8, abs=1e-12)
    assert lower_bound(curves, capacity) <= best


@settings(max_examples=50)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_layers_and_candidates_does_not_matter(problem, rng):
    drawn, capacity = problem
    other = [
        (name, rng.sample(each, len(each)), dense) for name, each, dense in rng.sample(drawn, len(drawn))
    ]

    assert allocate(curves_of(other), capacity) == allocate(curves_of(drawn), capacity)


@settings(max_examples=50)
@given(problems())
def test_no_better_choice_of_any_layer_fits_into_the_capacity_left(problem):
    drawn, capacity = problem
    curves = curves_of(drawn)
    assert not better_that_fit(drawn, curves, allocate(curves, capacity), capacity)


@pytest.mark.parametrize("share", SHARES)
def test_a_model_of_usual_size_is_close_to_the_bound_and_better_than_each_form_alone(share):
    drawn = model(5, 100)
    curves = curves_of(drawn)
    capacity = int(share * sum(dense for _, _, dense in drawn))
    cost, error = spent(curves, allocate(curves, capacity))
    bound = lower_bound(curves, capacity)

    assert 0.98 * capacity <= cost <= capacity
    assert bound <= error <= 1.01 * bound
    compared = 0
    for form in FORMS:
        alone = curves_of(drawn, {form})
        if fits(alone, capacity):
            assert error <= spent(alone, allocate(alone, capacity))[1]
            compared += 1
    assert compared


@pytest.mark.parametrize("share", SHARES)
def test_a_small_model_is_never_worse_than_a_form_alone(share):
    for seed in range(15):
        drawn = model(seed, random.Random(seed).randint(1, 6), sizes=(24, 32, 40))
        curves = curves_of(drawn)
        capacity = int(share * sum(dense for _, _, dense in drawn))
        for form in FORMS if fits(curves, capacity) else ():
            alone = curves_of(drawn, {form})
            if fits(alone, capacity):
                error = spent(curves, allocate(curves, capacity))[1]
                assert error <= spent(alone, allocate(alone, capacity))[1] * (1 + 1e-12)


def test_a_form_that_alone_fills_the_capacity_is_found_without_a_search():
    # The second form lies just above the hull. All layers with it fill the capacity; the steps on the hull,
    # each of cost 9, do not, and each is worth more than what lies above the hull in all layers.
    count = MAX_STATES // MIN_STATES + 1
    above = 10 - 4 * 10 / 9 + 1e-4
    forms = [Candidate(0, [1, 2], [10, 19], [10.0, 0.0]), Candidate(1, [0], [14], [above])]
    curves = [make_rate_curve(f"layer.{number}", forms, 40) for number in range(count)]
    assert count * 4 % 9

    _, error = spent(curves, allocate(curves, count * 14))
    assert error == pytest.approx(count * above)


def test_many_layers_of_several_forms_are_close_to_the_bound_without_a_search():
    kinds = model(3, 40, sizes=(16, 24), forms={SVD, INT8, INT4})
    drawn = [(f"layer.{at}", *kinds[at % 40][1:]) for at in range(MAX_STATES // MIN_STATES + 1)]
    curves = curves_of(drawn)
    for share in (0.2, 0.25, 0.3):
        capacity = int(share * sum(dense for _, _, dense in drawn))
        choices = allocate(curves, capacity)
        cost, error = spent(curves, choices)
        assert 0.999 * capacity <= cost <= capacity
        assert error <= 1.002 * lower_bound(curves, capacity)
        assert not better_that_fit(drawn, curves, choices, capacity)


def test_where_the_step_on_the_hull_does_not_fit_a_shorter_one_is_taken():
    count = MAX_STATES // MIN_STATES + 1
    forms = [Candidate(0, [1, 2], [10, 30], [10.0, 0.0]), Candidate(1, [0], [14], [9.0])]
    curves = [make_rate_curve(f"layer.{number}", forms, 40) for number in range(count)]

    assert sum(curve.hull[-1] == 2 for curve in curves) == count
    assert spent(curves, allocate(curves, count * 10 + 25)) == (count * 10 + 24, count * 10 - 11)


def test_the_bound_is_infinite_where_nothing_fits_and_zero_where_all_fits():
    curves = curves_of(model(1, 3))
    least, most = (sum(curve.costs[at] for curve in curves) for at in (0, -1))

    assert lower_bound(curves, least - 1) == math.inf
    assert lower_bound(curves, least) == pytest.approx(sum(curve.errors[0] for curve in curves))
    assert lower_bound(curves, most) == 0
    assert lower_bound([], 0) == 0


def optimistic(drawn, exact, shares):
    """Return the layers with lower bounds in place of the errors of the forms that are not exact."""
    return [
        (
            name,
            [
                each
                if each.form in exact[name]
                else Candidate(
                    each.form, each.ranks, each.costs, [shares[name, each.form] * e for e in each.errors]
                )
                for each in forms
            ],
            dense,
        )
        for name, forms, dense in drawn
    ]


def settle(drawn, capacity, rng, known=()):
    """Ask for exact errors until none is missing; return the last curves and how many were asked for."""
    shares = {(name, each.form): rng.uniform(0.3, 1) for name, forms, _ in drawn for each in forms}
    exact = {name: set(known) for name, _, _ in drawn}
    asked = 0
    while missing := undecided(curves := curves_of(optimistic(drawn, exact, shares)), capacity, exact):
        for name, form in missing:
            assert form not in exact[name]
            exact[name].add(form)
        asked += len(missing)
    return curves, asked


@settings(max_examples=50)
@given(problems(), st.randoms(use_true_random=False))
def test_once_nothing_is_undecided_the_allocation_is_that_of_exact_errors(problem, rng):
    drawn, capacity = problem
    curves, _ = settle(drawn, capacity, rng)
    exact = curves_of(drawn)
    _, error = spent(exact, allocate(curves, capacity))

    assert lowest_price(curves, capacity) == pytest.approx(lowest_price(exact, capacity), rel=1e-9)
    assert error == pytest.approx(least_error(drawn, capacity), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("share", SHARES)
def test_most_forms_of_most_layers_are_decided_by_their_bounds(share):
    drawn = model(7, 40)
    capacity = int(share * sum(dense for _, _, dense in drawn))
    known = (SVD, INT8, INT4)
    curves, asked = settle(drawn, capacity, random.Random(7), known)
    exact = curves_of(drawn)

    assert asked <= len(drawn) * (len(FORMS) - len(known)) * 0.7
    assert lowest_price(curves, capacity) == lowest_price(exact, capacity)
    assert lower_bound(curves, capacity) == pytest.approx(lower_bound(exact, capacity), rel=1e-12)
    error = spent(exact, allocate(curves, capacity))[1]
    assert error == pytest.approx(spent(exact, allocate(exact, capacity))[1], rel=1e-3)
