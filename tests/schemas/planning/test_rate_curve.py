"""schemas/planning/rate_curve.py: the best choices of all forms, and the best of them at a price."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.planning.rate_curve import Candidate, Choice, make_rate_curve
from tests.schemas.planning.rate_curves import candidates, choices_of

SVD = Candidate(0, range(1, 4), [10, 20, 30], [9.0, 4.0, 1.0])
INT8 = Candidate(1, [0], [20], [2.0])


@given(candidates(), st.floats(1e-3, 1e3))
def test_the_best_position_is_that_of_the_smallest_lagrangian_of_all_choices(drawn, price):
    curve = make_rate_curve("a", *drawn)
    best = min(error + price * cost for cost, error in choices_of(("a", *drawn)))

    assert curve.lagrangian(curve.best_position(price), price) == pytest.approx(best, rel=1e-12)


@given(candidates())
def test_each_choice_is_in_the_curve_or_another_equals_or_beats_it(drawn):
    curve = make_rate_curve("a", *drawn)
    kept = list(zip(curve.costs, curve.errors, strict=True))

    assert all(any(c <= cost and e <= error for c, e in kept) for cost, error in choices_of(("a", *drawn)))
    assert list(curve.costs) == sorted(set(curve.costs))
    assert list(curve.errors[:-1]) == sorted(curve.errors[:-1], reverse=True)


@given(candidates())
def test_choices_have_the_cost_and_error_that_their_form_gave_them(drawn):
    curve = make_rate_curve("a", *drawn)
    forms = {each.form: each for each in drawn[0]}
    for position in range(curve.dense):
        choice = curve.choice(position)
        form = forms[choice.form]
        at = form.ranks.index(choice.rank)
        assert (curve.cost(choice), curve.error(choice)) == (form.costs[at], form.errors[at])
        assert (curve.cost(choice), curve.error(choice)) == (curve.costs[position], curve.errors[position])
    assert curve.choice(curve.dense) is None
    assert (curve.cost(None), curve.error(None)) == (drawn[1], 0)


@given(candidates())
def test_the_curve_of_one_form_is_that_of_the_form_given_alone(drawn):
    given_forms, dense_cost = drawn
    curve = make_rate_curve("a", given_forms, dense_cost)
    for each in given_forms:
        alone, only = make_rate_curve("a", [each], dense_cost), curve.only(each.form)
        assert (only.costs, only.errors, list(only.ranks)) == (alone.costs, alone.errors, list(alone.ranks))

    assert list(curve.only(99).costs) == [dense_cost]
    assert curve.only(99).choice(0) is None


def test_a_choice_that_costs_no_less_and_errs_no_less_than_another_is_left_out():
    curve = make_rate_curve("a", [SVD, INT8], 64)

    assert [curve.choice(at) for at in range(4)] == [Choice(0, 1), Choice(1, 0), Choice(0, 3), None]


def test_choices_as_dear_as_dense_are_left_out():
    curve = make_rate_curve("a", [SVD, INT8], 20)

    assert [curve.choice(at) for at in range(2)] == [Choice(0, 1), None]


def test_a_convex_form_alone_keeps_all_choices_on_the_hull():
    curve = make_rate_curve("a", [SVD], 64)

    assert (list(curve.hull), list(curve.slopes)) == ([0, 1, 2], [-0.5, -0.3])


def test_a_form_whose_first_step_is_dear_begins_the_hull_with_a_longer_step():
    # An adapter has no header without factors; pivot's ranks cost the less the more there are.
    curve = make_rate_curve("a", [Candidate(0, range(3), [0, 30, 40], [9.0, 7.0, 3.0])], 64)

    assert (list(curve.hull), list(curve.slopes)) == ([0, 2], [-0.15])
    assert (curve.successor(0), curve.successor(1), curve.successor(2)) == (2, 2, 3)


def test_forms_of_the_same_rank_are_told_apart():
    curve = make_rate_curve("a", [SVD, Candidate(2, [1], [15], [5.0])], 64)

    assert (curve.cost(Choice(0, 1)), curve.cost(Choice(2, 1))) == (10, 15)
