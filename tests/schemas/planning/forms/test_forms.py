"""schemas/planning/forms: laws of every registered form."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.planning.forms import FORMS, Chain, FormOptions

FORM_VALUES = [
    FORMS["svd"].of(FormOptions()),
    FORMS["cx"].of(FormOptions()),
    FORMS["cur"].of(FormOptions(storage="three")),
    FORMS["cur"].of(FormOptions(storage="two")),
    *(FORMS[name].of(FormOptions()) for name in FORMS if name.startswith("int")),
]
SVD, CUR = FORM_VALUES[0], FORM_VALUES[2]
sides = st.integers(1, 60_000)
shapes = st.tuples(sides, sides)
forms = st.sampled_from(FORM_VALUES)


def test_every_registered_form_is_held_to_these_laws():
    assert {form.name for form in FORM_VALUES} == set(FORMS)


@settings(deadline=None)
@given(shapes, st.integers(1, 4000), forms)
def test_the_parameters_are_the_elements_of_the_stored_matrices(shape, rank, form):
    stored_matrices = form.stored_matrices(shape, rank)

    assert form.parameters(shape, rank) == sum(math.prod(matrix.shape) for matrix in stored_matrices)
    assert len({matrix.name for matrix in stored_matrices} | {form.bias}) == len(stored_matrices) + 1


@settings(deadline=None)
@given(shapes, st.integers(1, 4000), forms.filter(lambda form: isinstance(form, Chain)))
def test_the_parts_chain_from_the_inputs_to_the_outputs(shape, rank, form):
    stored_matrices = form.stored_matrices(shape, rank)

    assert stored_matrices[0].shape[1] == shape[1]
    assert stored_matrices[-1].shape[0] == shape[0]
    for before, after in itertools.pairwise(stored_matrices):
        assert after.shape[1] == before.shape[0] == rank


@settings(deadline=None)
@given(shapes, st.integers(0, 10**9), forms)
def test_the_largest_rank_fits_and_the_next_does_not(shape, parameters, form):
    rank = form.largest_rank(shape, parameters)

    assert rank == 0 or form.parameters(shape, rank) <= parameters
    assert rank == min(shape) or form.parameters(shape, rank + 1) > parameters


@settings(deadline=None)
@given(shapes, forms)
def test_break_even_saves_a_parameter_and_the_next_rank_does_not(shape, form):
    rank = form.break_even_rank(shape)

    assert rank == 0 or form.parameters(shape, rank) < math.prod(shape)
    assert form.parameters(shape, rank + 1) >= math.prod(shape)


@settings(deadline=None)
@given(shapes, forms, st.integers(1, 64), st.integers(1, 200))
def test_allowed_ranks_are_multiples_from_the_least_on_that_save(shape, form, align, least):
    ranks = form.ranks(shape, align=align, least=least)

    assert all(rank % align == 0 and least <= rank <= form.break_even_rank(shape) for rank in ranks)
    assert not ranks or ranks[0] - align < least


@pytest.mark.parametrize(
    ("shape", "ratio", "form", "rank"),
    [
        ((384, 384), 0.5, SVD, 96),
        ((384, 384), 0.5, CUR, 86),
        ((1536, 384), 0.5, SVD, 153),
        ((4096, 25088), 1 / 225, SVD, 15),
        ((10, 10), 0.2, SVD, 1),  # exactly 20 parameters: 0.2 is the decimal, not its nearest double
        ((1000, 1000), 0.3, SVD, 150),
        ((10, 10), 0.1, SVD, 0),
        ((384, 384), 1.0, SVD, 192),
    ],
)
def test_a_ratio_gives_the_rank_of_the_formula(shape, ratio, form, rank):
    assert form.ratio_rank(shape, ratio) == rank


@pytest.mark.parametrize(("shape", "form"), [((0, 5), SVD), ((5, 0), CUR), ((1, 1), SVD), ((1, 9), SVD)])
def test_a_matrix_that_cannot_save_has_break_even_zero(shape, form):
    assert form.break_even_rank(shape) == 0


def test_a_form_uses_only_its_own_options():
    options = FormOptions(selector="leverage", storage="two")

    assert FORMS["svd"].of(options) == FORMS["svd"].of(FormOptions())
    assert FORMS["cx"].of(options).selector == "leverage"
    assert FORMS["cur"].of(options) != FORMS["cur"].of(FormOptions(selector="leverage"))
