"""A pair of lower rank is the truncated SVD of the product, found without that product."""

import pytest
import torch

from worker.lowrank import EnergyRank, ErrorRank, FactorRequest, Reason, SVDMethod, resize, thin_product


def pair_of(m, n, r, dtype=torch.float32, decay=-2.0):
    torch.manual_seed(m + n + r)
    scales = torch.logspace(0, decay, r, dtype=torch.float64)
    down = torch.randn(r, n, dtype=torch.float64) * scales[:, None]
    return down.to(dtype), torch.randn(m, r, dtype=torch.float64).to(dtype)


def request(rank, r):
    return FactorRequest(method=SVDMethod(), rank=rank, max_rank=r - 1, dtype=None)


def best(down, up, rank):
    u, s, vh = torch.linalg.svd(up.double() @ down.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank], float(s[rank:].norm() / s.norm()), s


@pytest.mark.parametrize(("m", "n", "r"), [(40, 30, 8), (30, 40, 8), (6, 40, 8), (40, 6, 8), (5, 6, 8)])
@pytest.mark.parametrize("rank", [1, 4])
def test_the_result_is_the_best_approximation(m, n, r, rank):
    down, up = pair_of(m, n, r)
    found = resize(thin_product(down, up), request(rank, r), torch.float32)
    expected, error, spectrum = best(down, up, rank)
    right, left = found.factors
    assert (right.shape, left.shape) == ((rank, n), (m, rank))
    assert torch.allclose((left @ right).double(), expected, rtol=0, atol=1e-6 * float(spectrum[0]))
    assert found.relative_error == pytest.approx(error, rel=1e-5)
    assert found.optimal_error == pytest.approx(error, rel=1e-5)
    assert torch.allclose(found.singular_values, spectrum[: len(found.singular_values)], rtol=1e-9)
    # The values are split evenly.
    assert torch.allclose(right.norm(dim=1), left.norm(dim=0), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_error_is_that_of_what_is_stored(dtype):
    down, up = pair_of(40, 30, 8, dtype)
    found = resize(thin_product(down, up), request(7, 8), dtype)
    right, left = (factor.double() for factor in found.factors)
    dense = up.double() @ down.double()
    assert {factor.dtype for factor in found.factors} == {dtype}
    assert found.relative_error == pytest.approx(
        float((dense - left @ right).norm() / dense.norm()), rel=1e-6
    )
    assert found.squared_norm == pytest.approx(float(dense.norm()) ** 2)


def test_rules_find_the_least_rank():
    down, up = pair_of(40, 30, 8)
    _, _, s = best(down, up, 1)
    squares = s[:8].square().cumsum(0) / s.square().sum()
    pair = thin_product(down, up)
    for energy in (0.5, 0.9, 0.99):
        found = resize(pair, request(EnergyRank(energy), 8), torch.float32)
        assert found.rank == int((squares < energy).sum()) + 1
    for error in (0.5, 0.1, 0.02):
        found = resize(pair, request(ErrorRank(error), 8), torch.float32)
        assert found.rank == next(k for k in range(1, 8) if best(down, up, k)[1] <= error)


def test_an_error_holds_for_the_rounded_factors():
    down, up = pair_of(64, 48, 16, torch.bfloat16, decay=-5.0)
    pair = thin_product(down, up)
    enough = best(down, up, 7)[1] * 1.0001
    assert resize(pair, request(ErrorRank(enough), 16), torch.float64).rank == 7
    # At this rank rounding to bfloat16 adds too much.
    found = resize(pair, request(ErrorRank(enough), 16), torch.bfloat16)
    assert (found.rank, found.relative_error <= enough) == (8, True)
    assert resize(pair, request(ErrorRank(1e-4), 16), torch.bfloat16).reason is Reason.NO_SAVING


def test_a_product_of_lower_rank_than_its_pair_is_exact():
    down, up = pair_of(40, 30, 8)
    down[4:] = down[:4]
    found = resize(thin_product(down, up), request(6, 8), torch.float32)
    assert found.relative_error < 1e-6
    found = resize(thin_product(down, torch.zeros_like(up)), request(6, 8), torch.float32)
    assert found.relative_error == 0
    assert not any(factor.any() for factor in found.factors)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_pair_that_is_not_finite_is_kept(value):
    down, up = pair_of(40, 30, 8)
    up[3, 3] = value
    assert resize(thin_product(down, up), request(4, 8), torch.float32).reason is Reason.NOT_FINITE


def test_factors_that_the_dtype_cannot_hold_are_kept():
    down, up = pair_of(40, 30, 8, torch.float64)
    kept = resize(thin_product(down * 1e9, up * 1e9), request(4, 8), torch.float16)
    assert kept.reason is Reason.OUT_OF_RANGE
    assert len(kept.singular_values) == 8


def test_the_core_is_decomposed_once_for_a_cache():
    down, up = pair_of(40, 30, 8)
    cache = {}
    asked = FactorRequest(method=SVDMethod(), rank=4, max_rank=7, dtype=None, num_vectors=7)
    first = resize(thin_product(down, up), asked, torch.float32, cache=cache)
    assert cache[0].basis.shape == (7, 8)
    second = resize(thin_product(down, up), asked, torch.float32, cache=cache)
    assert all(map(torch.equal, first.factors, second.factors))
