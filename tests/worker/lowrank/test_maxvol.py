"""worker/lowrank/maxvol.py: all other rows from k of them, no coefficient above the bound."""

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import gaussian, hadamard
from worker.lowrank.maxvol import TRUSTED, bounded_rows
from worker.lowrank.pivoting import lu_pivots

M, K = 90, 30


def growing(k):
    """Return an orthonormal basis [k + 5, k] of which LU with partial pivoting takes the first k rows.

    Their coefficients for the other rows grow to about 2^(k - 1) (Wilkinson 1961).
    """
    pattern = torch.eye(k + 5, k, dtype=torch.float64)
    pattern -= 0.999 * torch.tril(torch.ones(k + 5, k, dtype=torch.float64), -1)
    return torch.linalg.qr(pattern).Q


BASES = {
    "gaussian": gaussian(M, K),
    "hadamard": hadamard(128)[:, :K],
    "one row in many copies": torch.eye(K, dtype=torch.float64).repeat(3, 1),
    "zero rows": torch.cat([torch.zeros(50, K, dtype=torch.float64), gaussian(40, K)]),
    "rows of very different size": gaussian(M, K) * torch.logspace(0, -12, M, dtype=torch.float64)[:, None],
    "growing": growing(K),
    "square": gaussian(K, K),
    "one row more": gaussian(K + 1, K),
}


@pytest.mark.parametrize("bound", [1.25, 2.0, 10.0])
@pytest.mark.parametrize("name", BASES)
def test_the_others_follow_with_bounded_coefficients(name, bound):
    basis = torch.linalg.qr(BASES[name]).Q

    rows, others, coefficients = bounded_rows(basis, bound)

    assert rows.tolist() == sorted(set(rows.tolist()))
    assert sorted(rows.tolist() + others.tolist()) == list(range(len(basis)))
    torch.testing.assert_close(coefficients @ basis[rows], basis[others], rtol=0, atol=1e-11)
    assert bool((coefficients.abs() <= bound).all())


@pytest.mark.parametrize(("k", "is_trusted"), [(12, True), (30, False)])
def test_pivots_with_large_coefficients_are_swapped_or_replaced(k, is_trusted):
    basis = growing(k)
    pivots = lu_pivots(basis)
    others = [row for row in range(len(basis)) if row not in pivots]
    plain = torch.linalg.solve(basis[pivots], basis[others], left=False)
    assert float(plain.abs().max()) > 100
    assert (float(plain.abs().max()) <= TRUSTED) == is_trusted

    rows, _, coefficients = bounded_rows(basis, 2.0)

    assert float(coefficients.abs().max()) <= 2
    assert np.linalg.slogdet(basis[rows])[1] > np.linalg.slogdet(basis[pivots])[1] + np.log(50)
