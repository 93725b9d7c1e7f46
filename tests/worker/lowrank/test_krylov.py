"""worker.lowrank.krylov: what is accepted is within its bound of the optimum."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import error, with_spectrum
from worker.lowrank import svd
from worker.lowrank.krylov import EXCESS, krylov_decomposition

N = 1024
INDEX = np.arange(1, N + 1)
SPECTRA = {
    "power law": INDEX**-0.5,
    "steep power law": 1.0 / INDEX,
    "exponential": np.exp(-INDEX / (N / 10)),
    "slow exponential": np.exp(-INDEX / N),
    "step at the rank": np.where(INDEX <= 102, 1.0, 0.1),
    "step under the rank": np.where(INDEX <= 90, 1.0, 0.3),
    "step over the rank": np.where(INDEX <= 400, 1.0, 0.1),
    "one outlier": np.where(INDEX <= 1, 20.0, INDEX**-0.5),
    "tied in pairs": np.repeat(INDEX[: N // 2] ** -0.5, 2),
}
FLAT = {"gaussian": None, "all alike": np.ones(N)}


@cache
def matrix(name, shape=(N, N)):
    """Return a float32 matrix and its singular values, to the digits of float32."""
    values = {**SPECTRA, **FLAT}[name]
    made = (
        np.random.default_rng(3).standard_normal(shape) if values is None else with_spectrum(*shape, values)
    )
    made = made.astype(np.float32)
    return made, np.linalg.svd(made, compute_uv=False).astype(np.float64) if values is None else values


@pytest.mark.parametrize("name", [*SPECTRA, *FLAT])
@pytest.mark.parametrize("rank", [102, 256])
def test_the_result_is_within_its_bound_of_the_optimum(name, rank):
    weight, values = matrix(name)
    best = math.sqrt(float((values[rank:] ** 2).sum()))
    reached = error(weight.astype(np.float64), svd(torch.from_numpy(weight), rank).factors)

    assert reached <= best * (1 + EXCESS + 1e-5)  # The values are known to about 1e-6.


@pytest.mark.parametrize("name", ["power law", "exponential", "one outlier"])
@pytest.mark.parametrize("shape", [(N, N), (N + 200, N), (N, N + 200)], ids=str)
def test_a_sketch_is_enough_where_the_spectrum_falls(name, shape):
    array, exact = matrix(name, shape)
    weight = torch.from_numpy(array)
    found = krylov_decomposition(weight, 100, seed=0)

    assert found.axis == ("columns" if shape[0] >= shape[1] else "rows")
    assert found.basis.shape == (100, N)
    torch.testing.assert_close(found.basis @ found.basis.mT, torch.eye(100), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.singular_values[:50], exact[:50], rtol=1e-3)
    assert found.optimal_error(100) == pytest.approx(
        np.linalg.norm(exact[100:]) / np.linalg.norm(exact), rel=EXCESS
    )


@pytest.mark.parametrize(
    ("weight", "rank"),
    [
        (torch.randn(N, N - 1), 100),
        (torch.randn(N, N), 300),
        (torch.randn(N, N), 200),
        (torch.randn(N, N, dtype=torch.float64), 100),
        (torch.zeros(N, N), 100),
        (torch.ones(N, N), 100),
        (torch.randn(N, 40) @ torch.randn(40, N), 100),
    ],
    ids=["small", "high rank", "flat", "float64", "zero", "rank 1", "rank 40"],
)
def test_there_is_no_sketch_where_it_would_not_pay_or_not_be_certain(weight, rank):
    assert krylov_decomposition(weight, rank, seed=0) is None


def test_a_matrix_of_exact_rank_comes_out_exactly():
    weight = torch.randn(N, 40, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        40, N, generator=torch.Generator().manual_seed(1)
    )
    for rank in (40, 100):
        found = svd(weight, rank)

        assert error(weight.double().numpy(), found.factors) <= 1e-6 * float(weight.norm())


def test_the_same_seed_gives_the_same_bytes_and_another_one_others():
    weight = torch.from_numpy(matrix("power law")[0])
    first, again, other = (krylov_decomposition(weight, 100, seed=seed).basis for seed in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
