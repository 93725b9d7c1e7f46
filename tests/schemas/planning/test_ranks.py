import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.planning.ranks import break_even_rank, factor_parameters, largest_rank, ratio_rank

sides = st.integers(1, 60_000)
factor_counts = st.sampled_from([2, 3])


@given(sides, sides, st.integers(0, 10**9), factor_counts)
def test_the_largest_rank_fits_and_the_next_does_not(rows, columns, parameters, factors):
    rank = largest_rank(rows, columns, parameters, factors=factors)

    assert factor_parameters(rows, columns, rank, factors=factors) <= parameters
    assert factor_parameters(rows, columns, rank + 1, factors=factors) > parameters


@given(sides, sides, factor_counts)
def test_break_even_saves_a_parameter_and_the_next_rank_does_not(rows, columns, factors):
    rank = break_even_rank(rows, columns, factors=factors)

    assert factor_parameters(rows, columns, rank, factors=factors) < rows * columns
    assert factor_parameters(rows, columns, rank + 1, factors=factors) >= rows * columns


@pytest.mark.parametrize(
    ("rows", "columns", "ratio", "factors", "rank"),
    [
        (384, 384, 0.5, 2, 96),
        (384, 384, 0.5, 3, 86),
        (1536, 384, 0.5, 2, 153),
        (4096, 25088, 1 / 225, 2, 15),
        (10, 10, 0.2, 2, 1),  # exactly 20 parameters: 0.2 is the decimal, not its nearest double
        (1000, 1000, 0.3, 2, 150),
        (10, 10, 0.1, 2, 0),
        (384, 384, 1.0, 2, 192),
    ],
)
def test_a_ratio_gives_the_rank_of_the_formula(rows, columns, ratio, factors, rank):
    assert ratio_rank(rows, columns, ratio, factors=factors) == rank


@pytest.mark.parametrize(("rows", "columns", "factors"), [(0, 5, 2), (5, 0, 3), (1, 1, 2), (1, 9, 2)])
def test_a_matrix_that_cannot_save_has_break_even_zero(rows, columns, factors):
    assert break_even_rank(rows, columns, factors=factors) == 0
