import math

import numpy as np
import pytest
import torch

from tests.lowrank.matrices import gaussian, hadamard, spectrum, with_spectrum
from worker.lowrank import (
    SELECTORS,
    EnergyRank,
    ErrorRank,
    FactorRequest,
    cur,
    cx,
    factor,
    relative_error,
    svd,
)


def made(weight, method, rank, **more):
    request = FactorRequest(method=method, rank=rank, max_rank=min(weight.shape), dtype=weight.dtype, **more)
    return factor(weight, request)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "k"), [(16, 4), (64, 16), (64, 40)])
def test_hadamard_has_one_error_for_any_columns_and_rows(n, k, dtype):
    weight = hadamard(n).to(dtype)
    rounding = 1e-4 if dtype == torch.bfloat16 else 1e-6

    assert made(weight, "svd", k).relative_error == pytest.approx(math.sqrt(1 - k / n), rel=rounding)
    for selector in SELECTORS:
        for seed in (0, 1):
            chosen = {"selector": selector, "seed": seed}
            assert made(weight, "cx", k, **chosen).relative_error == pytest.approx(
                math.sqrt(1 - k / n), rel=1e-6
            )
            for storage in ("three", "two"):
                reached = made(weight, "cur", k, storage=storage, **chosen).relative_error
                assert reached == pytest.approx(math.sqrt(1 - (k / n) ** 2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [32, 64])
def test_rank_rules_do_not_lose_hadamard_ties_to_rounding(n, dtype):
    weight = hadamard(n).to(dtype)
    for k in range(1, n, 5):
        assert made(weight, "svd", EnergyRank(k / n)).rank == k
        assert made(weight, "svd", EnergyRank((k + 0.5) / n)).rank == k + 1
        if dtype != torch.bfloat16:  # Whose rounding of the factors is an error of its own.
            assert made(weight, "svd", ErrorRank(math.sqrt(1 - k / n))).rank == k
            assert made(weight, "cx", ErrorRank(math.sqrt(1 - k / n))).rank == k


def test_min_i_j_has_the_singular_values_of_its_formula():
    n = 50
    i = torch.arange(1, n + 1, dtype=torch.float64)
    weight = torch.minimum(i[:, None], i[None, :])
    j = np.arange(1, n + 1)
    found = made(weight, "svd", 5)

    np.testing.assert_allclose(
        found.singular_values, 1 / (4 * np.sin((2 * j - 1) * np.pi / (2 * (2 * n + 1))) ** 2), rtol=1e-10
    )
    assert found.relative_error == pytest.approx(0.0129948699, abs=1e-10)
    assert found.relative_error == pytest.approx(found.optimal_error, rel=1e-10)


def test_second_differences_have_the_singular_values_of_their_formula():
    n = 40
    weight = 2 * torch.eye(n) - torch.diag(torch.ones(n - 1), 1) - torch.diag(torch.ones(n - 1), -1)
    values = 2 - 2 * np.cos(np.arange(n, 0, -1) * np.pi / (n + 1))

    np.testing.assert_allclose(svd(weight, 4).singular_values, values, rtol=1e-4)
    np.testing.assert_allclose(svd(weight.double(), 4).singular_values, values, rtol=1e-11)


def test_singular_values_of_a_kronecker_product_are_the_products():
    a, b = gaussian(6, 4, seed=1), gaussian(5, 7, seed=2)
    values = torch.outer(torch.linalg.svdvals(a), torch.linalg.svdvals(b)).flatten().sort(descending=True)[0]

    found = svd(torch.kron(a, b), 3).singular_values  # [28]: the product of 6 x 4 and 5 x 7 has rank 20

    torch.testing.assert_close(found[:20], values)
    torch.testing.assert_close(found[20:], torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("method", ["svd", "cx", "cur"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_matrix_of_exact_rank_is_recovered_and_its_rank_found(dtype, method, selector):
    integers = torch.randint(-4, 5, (40, 5), generator=torch.Generator().manual_seed(0))
    weight = (integers @ integers.T)[:, :30].to(dtype)  # [40, 30], rank 5, exact in every dtype
    eps = torch.finfo(dtype).eps

    found = made(weight, method, ErrorRank(100 * eps), selector=selector)
    assert found.rank >= 5
    assert found.relative_error <= 100 * eps
    assert made(weight, method, EnergyRank(1.0), selector=selector).rank == 5
    if selector in ("qdeim", "cpqr"):
        assert found.rank == 5
    # More columns than the rank has are dependent, and do no harm.
    assert made(weight, method, 12, selector=selector).relative_error <= 100 * eps


@pytest.mark.parametrize("selector", ["qdeim", "cpqr"])
def test_of_a_permuted_diagonal_the_largest_entries_are_chosen(selector):
    d = torch.tensor([3.0, 0.5, 8.0, 1.0, 5.0, 0.1])
    weight = torch.diag(d)[[4, 2, 0, 5, 1, 3]]
    best = svd(weight, 3)
    by_columns, by_both = cx(weight, 3, selector=selector), cur(weight, 3, selector=selector)

    assert by_columns.columns == by_both.columns == (0, 2, 4)
    assert by_both.rows == (0, 1, 2)
    optimum = relative_error(weight, best.factors)
    assert relative_error(weight, by_columns.factors) == pytest.approx(optimum, rel=1e-6)
    assert relative_error(weight, by_both.factors) == pytest.approx(optimum, rel=1e-6)


def test_columns_of_very_different_size_are_all_told_apart():
    d = torch.logspace(0, -25, 26, dtype=torch.float64)
    weight = torch.diag(d)[torch.randperm(26, generator=torch.Generator().manual_seed(0))]

    assert cx(weight, 20, selector="cpqr").columns == tuple(range(20))
    for method in ("cx", "cur"):
        found = made(weight, method, 20, selector="cpqr")
        assert found.squared_error**0.5 < 2 * float(d[20:].norm())


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("k", [3, 8, 20])
def test_on_a_simplex_every_choice_of_columns_is_off_by_the_root_of_k_plus_1(k, selector):
    delta = 1e-4
    centred = torch.eye(k + 1, dtype=torch.float64) - 1 / (k + 1)
    vertices = torch.linalg.qr(centred).R[:k]  # [k, k + 1], columns are the vertices
    weight = torch.cat((vertices, torch.full((1, k + 1), delta, dtype=torch.float64)))
    found = made(weight, "cx", k, selector=selector)

    assert found.squared_error**0.5 == pytest.approx((k + 1) * delta, rel=1e-5)
    assert found.relative_error / found.optimal_error == pytest.approx(math.sqrt(k + 1), rel=1e-5)


@pytest.mark.parametrize("method", ["svd", "cx", "cur"])
@pytest.mark.parametrize("rank", [1, 3, EnergyRank(0.5), EnergyRank(1.0), ErrorRank(0.1), ErrorRank(0.0)])
def test_the_zero_matrix_is_factored_without_error(rank, method):
    found = made(torch.zeros(5, 7), method, rank)

    assert found.rank == (rank if isinstance(rank, int) else 1)
    assert (found.relative_error, found.optimal_error, found.squared_norm) == (0.0, 0.0, 0.0)
    assert all(bool(part.isfinite().all()) for part in found.factors)


def test_noise_under_the_rounding_of_float64_is_no_rank():
    weight = torch.from_numpy(with_spectrum(40, 30, spectrum("rank 3", 30)))

    assert made(weight, "svd", EnergyRank(1.0)).rank == 3
