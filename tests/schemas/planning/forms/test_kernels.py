"""schemas/planning/forms: laws of every form for convolution kernels."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.planning.forms import CONV_FORMS, FormOptions, kernel_form

FORMS = {name: form.of(FormOptions()) for name, form in CONV_FORMS.items()}
channels = st.integers(1, 700)
kernels = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
cases = (
    st.tuples(channels, channels, kernels, st.sampled_from(sorted(FORMS)))
    .map(lambda case: (kernel_form(case[3], case[2]), (case[0], case[1], *case[2])))
    .filter(lambda case: case[0].takes_kernel(case[1][2:]))
)


@settings(deadline=None)
@given(cases, st.floats(0, 1))
def test_the_parameters_are_the_elements_of_the_stored_kernels(case, share):
    form, shape = case
    rank = max(1, int(share * form.full_rank(shape)))
    stored = form.stored_matrices(shape, rank)

    assert form.parameters(shape, rank) == sum(math.prod(matrix.shape) for matrix in stored)
    assert all(len(matrix.shape) == len(shape) for matrix in stored)
    assert stored[-1].shape[0] == shape[0]
    assert [matrix.name for matrix in stored] == [f"{number}.weight" for number in range(form.num_factors)]
    assert form.bias == f"{form.num_factors - 1}.bias"


@settings(deadline=None)
@given(cases, st.integers(0, 10**7))
def test_the_largest_rank_fits_and_the_next_does_not(case, parameters):
    form, shape = case
    rank = form.largest_rank(shape, parameters)

    assert rank == 0 or form.parameters(shape, rank) <= parameters
    assert rank == form.full_rank(shape) or form.parameters(shape, rank + 1) > parameters
    assert form.break_even_rank(shape) == form.largest_rank(shape, math.prod(shape) - 1)


@pytest.mark.parametrize(
    ("conv", "shape", "rank", "parameters"),
    [
        ("channel", (64, 32, 3, 3), 10, 10 * (32 * 9 + 64)),
        ("channel", (64, 32, 5), 10, 10 * (32 * 5 + 64)),
        ("channel", (64, 32, 3, 3, 3), 10, 10 * (32 * 27 + 64)),
        ("spatial", (64, 32, 3, 5), 10, 10 * (32 * 3 + 64 * 5)),
    ],
)
def test_the_parameters_follow_the_formula(conv, shape, rank, parameters):
    assert FORMS[conv].parameters(shape, rank) == parameters


@pytest.mark.parametrize(
    ("conv", "shape", "ratio", "rank"),
    [
        ("channel", (64, 64, 3, 3), 0.5, 28),  # 28·640 of 18432
        ("spatial", (64, 64, 3, 3), 0.5, 48),  # 48·384 = 18432 exactly
        ("channel", (64, 64, 3, 3), 0.01, 0),
    ],
)
def test_a_ratio_gives_the_rank_of_the_formula(conv, shape, ratio, rank):
    assert FORMS[conv].ratio_rank(shape, ratio) == rank


@pytest.mark.parametrize(
    ("conv", "kernel", "form"),
    [
        ("spatial", (3, 3), "spatial"),
        ("spatial", (3,), "channel"),
        *((name, (1, 1), "channel") for name in CONV_FORMS),
        *((name, (1,), "channel") for name in CONV_FORMS),
    ],
)
def test_a_kernel_with_nothing_to_separate_is_taken_as_a_matrix(conv, kernel, form):
    assert kernel_form(conv, kernel).name == form


def test_spatial_is_for_two_sides():
    assert [FORMS["spatial"].takes_kernel((3,) * sides) for sides in (1, 2, 3)] == [False, True, False]
