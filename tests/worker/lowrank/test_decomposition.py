"""worker.lowrank.decomposition: errors and ranks from singular values, as schemas.spectrum computes them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.spectrum import Spectrum
from worker.lowrank import Decomposition, EnergyRank, ErrorRank

values = st.lists(st.floats(0, 2), min_size=1, max_size=40).map(lambda some: sorted(some, reverse=True))
roundoffs = st.sampled_from([0.0, 1e-15, 4.8e-7, 1e-3])


def decomposition(some, roundoff=0.0, **more):
    basis = torch.zeros(len(some), 1)
    return Decomposition(torch.tensor(some, dtype=torch.float64), basis, "columns", roundoff, **more)


@pytest.mark.parametrize(
    ("some", "rule", "rank"),
    [
        ([2.0, 1.0, 1.0, 1.0, 1.0], EnergyRank(0.5), 1),
        ([2.0, 1.0, 1.0, 1.0, 1.0], EnergyRank(0.51), 2),
        ([2.0, 1.0, 1.0, 1.0, 1.0], EnergyRank(1.0), 5),
        ([3.0, 4e-8], EnergyRank(1.0), 2),
        ([3.0, 0.0], EnergyRank(1.0), 1),
        ([0.0, 0.0], EnergyRank(0.9), 1),
        ([4.0, 3.0], ErrorRank(0.6), 1),
        ([4.0, 3.0], ErrorRank(0.59), 2),
        ([4.0, 3.0], ErrorRank(2.0), 1),
        ([1.0, 1e-9], ErrorRank(1e-9), 1),
        ([1.0, 1e-9], ErrorRank(0.9e-9), 2),
        ([1.0] * 10, EnergyRank(0.7), 7),
        ([1.0] * 10, EnergyRank(0.3), 3),
    ],
)
def test_the_least_rank_is_that_of_the_formula(some, rule, rank):
    assert decomposition(some).smallest_rank_within(rule.loss) == rank


@given(values, roundoffs, st.floats(0.001, 1))
@settings(deadline=None, max_examples=300)
def test_a_rank_by_energy_is_that_of_the_definition_or_left_open(some, roundoff, energy):
    found = decomposition(some, roundoff).smallest_rank_within(EnergyRank(energy).loss)
    squares = np.square(some)

    assert found == Spectrum(some, 0, roundoff).rank_of_energy(energy)
    if found is not None and squares.sum() > 0:
        assert squares[found:].sum() <= (1 - energy + 1e-9) * squares.sum()
        assert found == 1 or squares[found - 1 :].sum() >= (1 - energy - 1e-9) * squares.sum()


@given(values, roundoffs)
@settings(deadline=None, max_examples=300)
def test_a_rank_is_accurate_where_its_tail_is_well_above_rounding(some, roundoff):
    found = decomposition(some, roundoff)
    tails = np.cumsum(np.square(some[::-1]))[::-1]

    for rank in range(1, len(some)):
        limit = 2e-4 * tails[rank] / tails[0] if tails[0] > 0 else 1.0  # Of zero nothing is uncertain.
        if abs(roundoff - limit) > 1e-9 * roundoff:  # Equality is decided by rounding.
            assert found.is_accurate_for(rank) == (roundoff <= limit or roundoff == 0)
            assert found.is_accurate_for(rank) == Spectrum(some, 0, roundoff).is_accurate_for(rank)
    assert not found.is_accurate_for(len(some) + 1)


def test_a_rank_by_a_rule_needs_all_singular_values():
    assert decomposition([2.0, 1.0], tail_energy=1e-9).smallest_rank_within(0.5) is None
    assert decomposition([2.0, 1.0], tail_energy=4.0).optimal_error(1) == pytest.approx((5 / 9) ** 0.5)


def test_the_optimal_error_keeps_the_digits_of_a_small_tail():
    found = decomposition([1.0, 4e-12, 3e-12])

    assert found.optimal_error(1) == pytest.approx(5e-12, rel=1e-12)
    assert found.optimal_error(3) == 0.0
    assert decomposition([0.0] * 3).optimal_error(0) == 0.0
