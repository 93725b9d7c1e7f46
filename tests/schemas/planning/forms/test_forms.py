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
    FORMS["pivot"].of(FormOptions()),
    *(FORMS[name].of(FormOptions()) for name in FORMS if name.startswith("int")),
]
SVD, CUR, PIVOT = FORM_VALUES[0], FORM_VALUES[2], FORM_VALUES[4]
sides = st.integers(1, 60_000)
shapes = st.tuples(sides, sides)
forms = st.sampled_from(FORM_VALUES)
chains = st.sampled_from([form for form in FORM_VALUES if isinstance(form, Chain)])


def test_every_registered_form_is_held_to_these_laws():
    assert {form.name for form in FORM_VALUES} == set(FORMS)


@settings(deadline=None)
@given(shapes, st.floats(0, 1), forms)
def test_the_parameters_are_the_elements_of_the_stored_matrices_but_for_indices(shape, share, form):
    rank = max(1, int(share * min(shape)))
    stored_matrices = form.stored_matrices(shape, rank)

    numbers = [math.prod(matrix.shape) for matrix in stored_matrices if matrix.dtype is None]
    assert form.parameters(shape, rank) == sum(numbers)
    assert len({matrix.name for matrix in stored_matrices} | {form.bias}) == len(stored_matrices) + 1


@settings(deadline=None)
@given(shapes, st.integers(1, 4000), chains)
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
@given(shapes, chains)
def test_break_even_saves_a_parameter_and_the_next_rank_does_not(shape, form):
    rank = form.break_even_rank(shape)

    assert rank == 0 or form.parameters(shape, rank) < math.prod(shape)
    assert form.parameters(shape, rank + 1) >= math.prod(shape)


def pivot_bits(shape, rank, bits):
    """Return the bits of rows and coefficients, and of the indices, 32 each."""
    outputs, inputs = shape
    return (rank * inputs + (outputs - rank) * rank) * bits + 32 * rank


@settings(deadline=None)
@given(shapes)
def test_pivot_saves_parameters_and_bytes_up_to_break_even_and_no_bytes_in_half_precision_beyond(shape):
    rank, elements = PIVOT.break_even_rank(shape), math.prod(shape)

    if rank:
        assert PIVOT.parameters(shape, rank) < elements
        assert all(pivot_bits(shape, rank, bits) < elements * bits for bits in (16, 32, 64))
    if rank + 1 <= min(shape):
        assert pivot_bits(shape, rank + 1, 16) >= elements * 16


def test_pivot_saves_at_all_ranks_but_the_last_few():
    shapes_and_ranks = {(384, 384): 357, (1536, 384): 383, (4096, 4096): 4006, (10, 1000): 9, (2, 2): 0}

    assert {shape: PIVOT.break_even_rank(shape) for shape in shapes_and_ranks} == shapes_and_ranks
    assert all(
        PIVOT.parameters(shape, rank) == rank * (sum(shape) - rank)
        for shape, rank in shapes_and_ranks.items()
    )


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
        ((384, 384), 0.5, PIVOT, 112),  # 112·(768 - 112) = 73 472 of 73 728; svd has rank 96
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
