"""schemas.spectrum: ranks and errors from singular values, for the planner and for the numerics."""

import numpy as np
import pytest

from schemas.spectrum import Spectrum, first_accurate, is_accurate, smallest_rank_within, squared_tails


def test_tail_energies_are_summed_from_the_small_end():
    assert squared_tails([3.0, 2.0, 1.0]).tolist() == [14.0, 5.0, 1.0, 0.0]
    assert squared_tails([4.0, 2.0], scale=2.0).tolist() == [5.0, 1.0, 0.0]
    assert squared_tails([1.0, 3e-12, 4e-12])[1] == pytest.approx(25e-24, rel=1e-12)


def test_ties_do_not_depend_on_rounding():
    tails = squared_tails([1.0] * 64)

    for k in range(1, 65):
        assert Spectrum([1.0] * 64, 0, 0.0).rank_of_energy(k / 64) == k
        assert smallest_rank_within(tails, 1 - k / 64) == k


def test_a_rank_that_rounding_decides_is_left_open():
    tails = squared_tails([1.0, 1e-3, 1e-4])

    assert smallest_rank_within(tails, 1e-6, roundoff=0.0) == 2
    assert smallest_rank_within(tails, 1e-6, roundoff=1e-7) is None
    assert smallest_rank_within(tails, 1e-2, roundoff=1e-7) == 1


def test_an_energy_is_accurate_where_it_is_large_against_rounding():
    assert is_accurate(0.0, 0.0, 1.0)
    assert is_accurate(1e-6, 1e-2, 1.0)
    assert not is_accurate(1e-6, 1e-3, 1.0)


def test_the_first_accurate_spectrum_counts():
    rough, fine = Spectrum([1.0, 1e-3], 0, 4.8e-7), Spectrum([1.0, 1e-3], 0, 0.0)

    assert first_accurate([rough, fine], 1) is fine
    assert first_accurate([Spectrum([1.0, 0.5], 0, 4.8e-7), fine], 1).roundoff == 4.8e-7
    assert first_accurate([rough], 1) is None


@pytest.mark.parametrize("exponent", [-1074, -3, 0, 1, 1023])
def test_a_spectrum_is_scaled_exactly(exponent):
    assert Spectrum([0.75, 0.5], exponent, 0.0).scaled().tolist() == [
        np.ldexp(0.75, exponent),
        np.ldexp(0.5, exponent),
    ]
