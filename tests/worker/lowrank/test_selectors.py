"""worker.lowrank.selectors: one function for all of them."""

from typing import get_args

import pytest
import scipy.linalg
import torch

from schemas.planning import forms
from tests.worker.lowrank.matrices import (
    cx_error,
    gaussian,
)
from worker.lowrank import STORAGES
from worker.lowrank.pivoting import BLOCKED_WORK
from worker.lowrank.selectors import SELECTORS, select
from worker.lowrank.solvers import solve_for


def test_the_spec_offers_these_selectors_and_storages():
    assert get_args(forms.Selector) == SELECTORS
    assert get_args(forms.Storage) == STORAGES


def test_a_large_weight_has_the_columns_that_lapack_chooses():
    weight = gaussian(1050, 1050).float()
    chosen = select("cpqr", 256, axis="columns", matrix=weight, decomposition=None, seed=0)
    expected = scipy.linalg.qr(weight.numpy(), mode="r", pivoting=True)[1][:256].tolist()

    assert weight.numel() * 256 >= BLOCKED_WORK
    # Rounding in float32 may decide between two columns of the same length.
    assert len(set(chosen) & set(expected)) >= 240
    matrix = weight.double().numpy()
    assert cx_error(matrix, chosen) == pytest.approx(cx_error(matrix, expected), rel=1e-3)


@pytest.mark.parametrize("selector", SELECTORS)
def test_selectors_do_not_change_what_they_are_given(selector):
    matrix = gaussian(300, 300)
    before, decomposition = matrix.clone(), solve_for(matrix, 40)
    basis = decomposition.basis.clone()
    for axis in ("columns", "rows"):
        select(selector, 40, axis=axis, matrix=matrix, decomposition=decomposition, seed=0)

    assert torch.equal(matrix, before)
    assert torch.equal(decomposition.basis, basis)
