"""Matrices whose singular values, columns and errors have closed forms."""

import math

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import HALF, hadamard, product, spectrum, with_spectrum
from tests.worker.lowrank.requests import asked
from worker.lowrank import (
    SELECTORS,
    EnergyRank,
    ErrorRank,
    cur,
    cx,
    factor,
    relative_error,
    svd,
)
from worker.lowrank.svd import SOLVERS

# The matrices here are exact in all of these. Hadamard matrices try all of them, each other law two.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WIDE = (torch.float64, torch.float32)
MIXED = (torch.float32, torch.bfloat16)
# What rounding the factors to their dtype may add to an error that is not small.
SEEN = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 1e-4, torch.float16: 1e-5}


def made(weight, method, rank, **more):
    request = asked(method=method, rank=rank, max_rank=min(weight.shape), dtype=weight.dtype, **more)
    return factor(weight, request)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(16, 4), (64, 16), (64, 40)])
def test_hadamard_has_one_error_for_any_columns_and_rows(n, k, dtype):
    weight = hadamard(n).to(dtype)

    assert made(weight, "svd", k).relative_error == pytest.approx(math.sqrt(1 - k / n), rel=SEEN[dtype])
    for selector in SELECTORS:
        for seed in (0, 1):
            chosen = {"selector": selector, "seed": seed}
            assert made(weight, "cx", k, **chosen).relative_error == pytest.approx(
                math.sqrt(1 - k / n), rel=1e-6
            )
            for storage in ("three", "two"):
                reached = made(weight, "cur", k, storage=storage, **chosen).relative_error
                assert reached == pytest.approx(math.sqrt(1 - (k / n) ** 2), rel=1e-6)


@pytest.mark.parametrize("dtype", MIXED, ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [64, 256])
def test_every_solver_finds_a_hadamard_matrix_flat(n, solver, dtype):
    weight = hadamard(n).to(dtype)
    found = svd(weight, n // 4, solver=solver)

    np.testing.assert_allclose(found.singular_values, math.sqrt(n), rtol=1e-5)
    assert relative_error(weight, found.factors) == pytest.approx(math.sqrt(3) / 2, rel=1e-6)


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


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [50, 200])
def test_min_i_j_has_the_singular_values_of_its_formula(n, solver, dtype):
    i = torch.arange(1, n + 1)
    weight = torch.minimum(i[:, None], i[None, :]).to(dtype)
    j = np.arange(1, n + 1)
    values = 1 / (4 * np.sin((2 * j - 1) * np.pi / (2 * (2 * n + 1))) ** 2)
    tail = math.sqrt(float((values[5:] ** 2).sum() / (values**2).sum()))
    found = svd(weight, 5, solver=solver)

    np.testing.assert_allclose(found.singular_values[:5], values[:5], rtol=1e-6)
    assert relative_error(weight, found.factors) == pytest.approx(tail, rel=1e-4)
    if n == 50:
        assert tail == pytest.approx(0.0129948699, abs=1e-10)
    if dtype == torch.float64:
        stored = made(weight, "svd", 5)
        assert stored.relative_error == pytest.approx(tail, rel=1e-9)
        assert stored.optimal_error == pytest.approx(tail, rel=1e-9)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [40, 180])
def test_second_differences_have_the_singular_values_of_their_formula(n, solver, dtype):
    weight = 2 * torch.eye(n) - torch.diag(torch.ones(n - 1), 1) - torch.diag(torch.ones(n - 1), -1)
    weight = weight.to(dtype)
    values = 2 - 2 * np.cos(np.arange(n, 0, -1) * np.pi / (n + 1))
    found = svd(weight, 4, solver=solver)

    np.testing.assert_allclose(found.singular_values[:4], values[:4], rtol=1e-5)
    assert relative_error(weight, found.factors) == pytest.approx(
        math.sqrt(float((values[4:] ** 2).sum() / (values**2).sum())), rel=1e-5
    )
    if solver == "exact":
        np.testing.assert_allclose(found.singular_values, values, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_singular_values_of_a_kronecker_product_are_the_products(solver, dtype):
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(-3, 4, (6, 4), generator=generator).double()
    b = torch.randint(-3, 4, (5, 7), generator=generator).double()
    values = torch.outer(torch.linalg.svdvals(a), torch.linalg.svdvals(b)).flatten().sort(descending=True)[0]
    weight = torch.kron(a, b).to(dtype)
    found = svd(weight, 3, solver=solver)

    torch.testing.assert_close(found.singular_values[:20], values[:20])
    # The product of 6 x 4 and 5 x 7 has rank 20.
    torch.testing.assert_close(found.singular_values[20:], torch.zeros(8).double(), rtol=0, atol=1e-12)
    tail = float(values[3:].norm() / values.norm())
    assert relative_error(weight, found.factors) == pytest.approx(tail, rel=1e-5)
    assert made(weight, "svd", 3).relative_error == pytest.approx(tail, rel=10 * SEEN[dtype])


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("method", ["svd", "cx", "cur"])
@pytest.mark.parametrize("dtype", MIXED, ids=str)
def test_a_matrix_of_exact_rank_is_recovered_and_its_rank_found(dtype, method, selector):
    integers = torch.randint(-4, 5, (40, 5), generator=torch.Generator().manual_seed(0))
    weight = (integers @ integers.T)[:, :30].to(dtype)  # [40, 30], rank 5, exact in every dtype
    rounding = (4 if dtype in HALF else 100) * torch.finfo(dtype).eps

    found = made(weight, method, ErrorRank(rounding), selector=selector)
    assert found.rank >= 5
    assert found.relative_error <= rounding
    assert made(weight, method, EnergyRank(1.0), selector=selector).rank == 5
    if selector not in ("leverage", "linear_time"):
        assert found.rank == 5
    # More columns than the rank has are dependent, and do no harm.
    assert made(weight, method, 12, selector=selector).relative_error <= rounding


@pytest.mark.parametrize("dtype", MIXED, ids=str)
@pytest.mark.parametrize("selector", [each for each in SELECTORS if each != "linear_time"])
def test_of_a_permuted_diagonal_the_largest_entries_are_chosen(selector, dtype):
    d = torch.tensor([3.0, 0.5, 8.0, 1.0, 5.0, 0.125], dtype=dtype)
    weight = torch.diag(d)[[4, 2, 0, 5, 1, 3]]
    best = svd(weight, 3)
    by_columns, by_both = cx(weight, 3, selector=selector), cur(weight, 3, selector=selector)

    assert by_columns.columns == by_both.columns == (0, 2, 4)
    assert by_both.rows == (0, 1, 2)
    optimum = relative_error(weight, best.factors)
    assert relative_error(weight, by_columns.factors) == pytest.approx(optimum, rel=1e-6)
    assert relative_error(weight, by_both.factors) == pytest.approx(optimum, rel=1e-6)


def test_columns_of_very_different_size_are_all_distinguished():
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


@pytest.mark.parametrize("dtype", MIXED, ids=str)
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("k", [3, 7, 31])
def test_of_a_flattened_hadamard_matrix_any_columns_are_off_by_nearly_the_root_of_k_plus_1(
    k, selector, dtype
):
    delta = 2.0**-7
    # Without their first row of ones, the columns of a Hadamard matrix are the vertices of a simplex.
    weight = hadamard(k + 1)
    weight[0] *= delta
    request = asked(method="cx", rank=k, max_rank=k, dtype=torch.float64, selector=selector)
    found = factor(weight.to(dtype), request)

    ratio = math.sqrt((k + 1) / (1 + k * delta**2))
    assert found.relative_error / found.optimal_error == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_is_kept_and_what_is_lost_add_up_in_squares(dtype, selector):
    weight = torch.from_numpy(with_spectrum(60, 45, spectrum("slow", 45))).to(dtype)
    for method in ("svd", "cx", "cur"):
        found = made(weight, method, 12, selector=selector)
        kept = float(np.linalg.norm(product(found.factors))) ** 2

        assert kept + found.squared_error == pytest.approx(found.squared_norm, rel=1e-5)
        assert found.squared_norm == pytest.approx(float(weight.double().norm()) ** 2, rel=1e-12)


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
