"""worker.lowrank.solvers: every solver of the cascade finds the same decomposition."""

import math

import pytest
import torch

from tests.worker.lowrank.matrices import spectrum, with_spectrum
from worker.lowrank.scale import ScaledWeight, exponent_of
from worker.lowrank.solvers import solve


@pytest.mark.parametrize("all_values", [True, False])
@pytest.mark.parametrize("shape", [(200, 200), (450, 150), (150, 450)], ids=str)
def test_every_solver_finds_the_same_decomposition(shape, all_values):
    weight = torch.from_numpy(with_spectrum(*shape, spectrum("slow", min(shape)))).float()
    scaled = ScaledWeight(weight, exponent_of(weight))
    found = list(solve(scaled.matrix, num_vectors=6, all_values=all_values))
    expected = torch.linalg.svdvals(weight.double()) * 2.0**-scaled.exponent

    assert [each.basis.dtype for each in found] == [torch.float32, *3 * [torch.float64]]
    assert [each.roundoff > 0 for each in found] == [True, True, False, False]
    for each in found:
        known = expected if all_values or each.roundoff == 0 else expected[:6]
        torch.testing.assert_close(each.singular_values, known, rtol=2e-5, atol=1e-6)
        assert each.optimal_error(6) == pytest.approx(float(expected[6:].norm() / expected.norm()), rel=1e-5)
        left, right = (each.vectors(scaled.matrix, 6, axis=axis) for axis in ("rows", "columns"))
        middle = (left.double().mT @ weight.double() @ right.double()) * 2.0**-scaled.exponent
        torch.testing.assert_close(middle, torch.diag(expected[:6]), rtol=1e-5, atol=1e-5)
        for side in (left, right):
            torch.testing.assert_close(side.mT @ side, torch.eye(6).to(side), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 40), (300, 150)], ids=str)
def test_solvers_that_do_not_converge_are_skipped(shape):
    assert list(solve(torch.full(shape, math.nan), num_vectors=3, all_values=True)) == []
