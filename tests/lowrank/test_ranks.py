import math

import numpy as np
import pytest
import torch

from tests.lowrank.matrices import gaussian, spectrum, with_spectrum
from worker.lowrank import EnergyRank, ErrorRank, Factored, FactorRequest, Kept, Reason, factor
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.ranks import least_rank
from worker.lowrank.search import least


@pytest.mark.parametrize(
    ("values", "rule", "rank"),
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
def test_the_least_rank_is_the_formulas(values, rule, rank):
    assert least_rank(torch.tensor(values, dtype=torch.float64), rule) == rank


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["slow", "fast", "tied in two"])
def test_energy_and_error_ranks_are_those_of_the_float64_spectrum(name, dtype):
    weight = torch.from_numpy(with_spectrum(48, 40, spectrum(name, 40))).to(dtype)
    squares = np.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2
    for part in (0.05, 0.3, 0.5, 0.77, 0.9, 0.99):
        for method in ("svd", "cx"):
            request = FactorRequest(method=method, rank=EnergyRank(part), max_rank=40, dtype=torch.float32)
            found = factor(weight, request)

            assert squares[: found.rank].sum() >= part * squares.sum()
            assert squares[: found.rank - 1].sum() < part * squares.sum()
        request = FactorRequest(method="svd", rank=ErrorRank(part), max_rank=40, dtype=torch.float32)
        found = factor(weight, request)
        assert math.sqrt(squares[found.rank :].sum() / squares.sum()) <= part
        assert found.rank == 1 or math.sqrt(squares[found.rank - 1 :].sum() / squares.sum()) > part


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["svd", "cx", "cur"])
@pytest.mark.parametrize("epsilon", [0.7, 0.3, 0.05, 0.02])
def test_an_error_promised_is_kept_by_the_stored_factors_of_every_method(epsilon, method, dtype):
    weight = torch.from_numpy(with_spectrum(48, 40, spectrum("fast", 40))).to(dtype)
    request = FactorRequest(method=method, rank=ErrorRank(epsilon), max_rank=40, dtype=dtype)
    found = factor(weight, request)

    assert isinstance(found, Factored)
    assert found.relative_error <= epsilon
    if found.rank > 1:
        fewer = factor(weight, FactorRequest(method=method, rank=found.rank - 1, max_rank=40, dtype=dtype))
        assert fewer.relative_error > epsilon


@pytest.mark.parametrize("method", ["svd", "cx", "cur"])
def test_what_cannot_be_promised_below_the_break_even_rank_is_kept_with_its_spectrum(method):
    weight = gaussian(30, 30).float()
    for rule in (ErrorRank(0.05), EnergyRank(0.999)):
        found = factor(weight, FactorRequest(method=method, rank=rule, max_rank=14, dtype=torch.float32))

        assert isinstance(found, Kept)
        assert found.reason is Reason.NO_SAVING
        torch.testing.assert_close(
            found.singular_values, torch.linalg.svdvals(weight.double()), rtol=1e-5, atol=1e-6
        )


def test_an_error_that_rounding_alone_exceeds_is_not_promised():
    weight = torch.from_numpy(with_spectrum(40, 30, spectrum("rank 3", 30)))
    request = FactorRequest(method="svd", rank=ErrorRank(1e-6), max_rank=20, dtype=torch.bfloat16)

    assert factor(weight, request).reason is Reason.NO_SAVING


def test_cur_needs_a_higher_rank_than_cx_and_cx_than_svd_for_the_same_error():
    weight = torch.from_numpy(with_spectrum(48, 40, spectrum("slow", 40)))
    ranks = [
        factor(
            weight, FactorRequest(method=method, rank=ErrorRank(0.4), max_rank=40, dtype=torch.float64)
        ).rank
        for method in ("svd", "cx", "cur")
    ]

    assert ranks[0] < ranks[1] < ranks[2]


@pytest.mark.parametrize(
    ("start", "ceiling", "first"), [(1, 1, 1), (1, 50, 1), (3, 50, 4), (3, 50, 37), (3, 50, 50)]
)
def test_the_search_finds_the_first_rank_that_holds_in_few_trials(start, ceiling, first):
    tried = []

    def attempt(rank):
        tried.append(rank)
        return rank

    assert least(start, ceiling, attempt, lambda rank: rank >= first) == first
    assert len(tried) <= 2 * math.log2(ceiling) + 2
    assert all(start <= rank <= ceiling for rank in tried)


def test_the_search_ends_at_the_ceiling_where_no_rank_holds():
    assert least(3, 9, lambda rank: rank, lambda rank: rank > 9) == 9


def tail(values, rank):
    return Decomposition(values, torch.eye(3), "columns", noise=0.0).tail(rank)


def test_the_optimal_error_keeps_the_digits_of_a_small_tail():
    values = torch.tensor([1.0, 3e-12, 4e-12], dtype=torch.float64)

    assert tail(values, 1) == pytest.approx(5e-12, rel=1e-12)
    assert tail(values, 3) == 0.0
    assert tail(torch.zeros(3), 0) == 0.0


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.1, math.nan])
def test_an_energy_outside_its_range_is_refused(energy):
    with pytest.raises(ValueError, match=r"energy must lie in \(0, 1\]"):
        EnergyRank(energy)


@pytest.mark.parametrize("epsilon", [-0.1, math.inf, math.nan])
def test_an_error_outside_its_range_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon must be"):
        ErrorRank(epsilon)
