"""worker.lowrank.factor: ranks by energy and by error."""

import math

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import gaussian, spectrum, with_spectrum
from tests.worker.lowrank.requests import asked
from worker.lowrank import EnergyRank, ErrorRank, Factored, Kept, Reason, factor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["slow", "fast", "tied in two"])
def test_energy_and_error_ranks_are_those_of_the_float64_spectrum(name, dtype):
    weight = torch.from_numpy(with_spectrum(48, 40, spectrum(name, 40))).to(dtype)
    squares = np.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2
    for part in (0.05, 0.3, 0.5, 0.77, 0.9, 0.99):
        for method in ("svd", "cx"):
            request = asked(method=method, rank=EnergyRank(part), max_rank=40, dtype=torch.float32)
            found = factor(weight, request)

            assert squares[: found.rank].sum() >= part * squares.sum()
            assert squares[: found.rank - 1].sum() < part * squares.sum()
        request = asked(method="svd", rank=ErrorRank(part), max_rank=40, dtype=torch.float32)
        found = factor(weight, request)
        assert math.sqrt(squares[found.rank :].sum() / squares.sum()) <= part
        assert found.rank == 1 or math.sqrt(squares[found.rank - 1 :].sum() / squares.sum()) > part


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["svd", "cx", "cur"])
@pytest.mark.parametrize("epsilon", [0.7, 0.3, 0.05, 0.02])
def test_an_error_promised_is_kept_by_the_stored_factors_of_every_method(epsilon, method, dtype):
    weight = torch.from_numpy(with_spectrum(48, 40, spectrum("fast", 40))).to(dtype)
    request = asked(method=method, rank=ErrorRank(epsilon), max_rank=40, dtype=dtype)
    found = factor(weight, request)

    assert isinstance(found, Factored)
    assert found.relative_error <= epsilon
    if found.rank > 1:
        fewer = factor(weight, asked(method=method, rank=found.rank - 1, max_rank=40, dtype=dtype))
        assert fewer.relative_error > epsilon


@pytest.mark.parametrize("method", ["svd", "cx", "cur"])
def test_what_cannot_be_promised_below_the_break_even_rank_is_kept_with_its_spectrum(method):
    weight = gaussian(30, 30).float()
    for rule in (ErrorRank(0.05), EnergyRank(0.999)):
        found = factor(weight, asked(method=method, rank=rule, max_rank=14, dtype=torch.float32))

        assert isinstance(found, Kept)
        assert found.reason is Reason.NO_SAVING
        torch.testing.assert_close(
            found.singular_values, torch.linalg.svdvals(weight.double()), rtol=1e-5, atol=1e-6
        )


def test_an_error_that_rounding_alone_exceeds_is_not_promised():
    weight = torch.from_numpy(with_spectrum(40, 30, spectrum("rank 3", 30)))
    request = asked(method="svd", rank=ErrorRank(1e-6), max_rank=20, dtype=torch.bfloat16)

    assert factor(weight, request).reason is Reason.NO_SAVING


def test_cur_needs_a_higher_rank_than_cx_and_cx_than_svd_for_the_same_error():
    weight = torch.from_numpy(with_spectrum(48, 40, spectrum("slow", 40)))
    ranks = [
        factor(weight, asked(method=method, rank=ErrorRank(0.4), max_rank=40, dtype=torch.float64)).rank
        for method in ("svd", "cx", "cur")
    ]

    assert ranks[0] < ranks[1] < ranks[2]
