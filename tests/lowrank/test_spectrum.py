"""What the language says of a spectrum is what the numerics say of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.spectrum import Spectrum, careful_enough
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.ranks import EnergyRank

values = st.lists(st.floats(0, 2), min_size=1, max_size=40).map(lambda some: sorted(some, reverse=True))
noises = st.sampled_from([0.0, 1e-15, 4.8e-7, 1e-3])


def both(some, noise):
    basis = torch.zeros(len(some), 1)
    decomposition = Decomposition(torch.tensor(some, dtype=torch.float64), basis, "columns", noise)
    return Spectrum(some, 0, noise), decomposition


@given(values, noises, st.floats(0.001, 1))
@settings(deadline=None, max_examples=300)
def test_a_rank_by_energy_is_the_same(some, noise, energy):
    spectrum, decomposition = both(some, noise)

    assert spectrum.rank_of_energy(energy) == decomposition.decide(EnergyRank(energy))


@given(values, noises)
@settings(deadline=None, max_examples=300)
def test_a_rank_is_resolved_by_both_or_by_none(some, noise):
    spectrum, decomposition = both(some, noise)
    tails = np.cumsum(np.square(some[::-1]))[::-1]

    for rank in range(1, len(some)):
        # But for one that rounding alone decides.
        if tails[0] > 0 and abs(noise - 2e-4 * tails[rank] / tails[0]) > 1e-9 * noise:
            assert spectrum.resolves(rank) == decomposition.resolves(rank)


def test_ties_are_settled_alike():
    spectrum, decomposition = both([1.0] * 64, 0.0)

    for k in range(1, 65):
        assert spectrum.rank_of_energy(k / 64) == decomposition.decide(EnergyRank(k / 64)) == k


def test_the_first_spectrum_that_is_careful_enough_counts():
    rough, fine = Spectrum([1.0, 1e-3], 0, 4.8e-7), Spectrum([1.0, 1e-3], 0, 0.0)

    assert careful_enough([rough, fine], 1) is fine
    assert careful_enough([Spectrum([1.0, 0.5], 0, 4.8e-7), fine], 1).noise == 4.8e-7
    assert careful_enough([rough], 1) is None


@pytest.mark.parametrize("exponent", [-1074, -3, 0, 1, 1023])
def test_a_spectrum_is_scaled_exactly(exponent):
    assert Spectrum([0.75, 0.5], exponent, 0.0).scaled().tolist() == [
        np.ldexp(0.75, exponent),
        np.ldexp(0.5, exponent),
    ]
