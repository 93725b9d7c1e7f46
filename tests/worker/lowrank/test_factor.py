"""worker.lowrank.factor: what a job runs for one weight."""

import math
from dataclasses import replace

import pytest
import torch

from tests.worker.lowrank.matrices import gaussian, optimum
from tests.worker.lowrank.requests import asked
from worker.lowrank import (
    SELECTORS,
    EnergyRank,
    ErrorRank,
    Factored,
    Kept,
    Reason,
    factor,
    relative_error,
)
from worker.lowrank.factor import decompose, factor_by
from worker.lowrank.scale import ScaledWeight, exponent_of
from worker.lowrank.solvers import solve

METHODS = ["svd", "cx", "cur"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("method", "storage", "shapes"),
    [
        ("svd", "three", [(4, 24), (30, 4)]),
        ("cx", "three", [(4, 24), (30, 4)]),
        ("cur", "two", [(4, 24), (30, 4)]),
        ("cur", "three", [(4, 24), (4, 4), (30, 4)]),
    ],
)
def test_factors_are_those_of_a_stock_sequential(method, storage, shapes, dtype):
    weight = gaussian(30, 24)
    found = factor(weight, asked(method, dtype=dtype, storage=storage))
    layers = torch.nn.Sequential(*(torch.nn.Linear(n, k, bias=False) for k, n in shapes)).to(dtype)
    layers.load_state_dict({f"{i}.weight": part for i, part in enumerate(found.factors)}, strict=True)

    assert all(part.is_contiguous() and part.dtype == dtype for part in found.factors)
    assert found.relative_error == pytest.approx(relative_error(weight, found.factors), rel=1e-9)
    assert (found.columns is None, found.rows is None) == (method == "svd", method != "cur")


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("method", METHODS)
def test_the_same_weight_and_request_give_the_same_bytes(method, selector):
    weight = gaussian(200, 90).to(torch.bfloat16)
    request = asked(method, 20, 60, torch.bfloat16, selector=selector, seed=5)
    once, again = factor(weight, request), factor(weight.clone(), request)

    assert all(torch.equal(a, b) for a, b in zip(once.factors, again.factors, strict=True))
    assert torch.equal(once.singular_values, again.singular_values)
    assert once.relative_error == again.relative_error


@pytest.mark.parametrize("rule", [EnergyRank(0.5), ErrorRank(0.75)])
@pytest.mark.parametrize("method", METHODS)
def test_a_rank_by_a_rule_goes_up_to_one_that_is_allowed(method, rule):
    weight = gaussian(60, 60)
    free = factor(weight, asked(method, rule, 29)).rank
    for align, min_rank in ((1, 1), (4, 1), (7, 1), (1, free + 3), (5, free + 1)):
        found = factor(weight, asked(method, rule, 29, align=align, min_rank=min_rank))
        allowed = [k for k in range(align, 30, align) if k >= max(free, min_rank)]
        assert found.rank == allowed[0]
        if isinstance(rule, ErrorRank):
            assert found.relative_error <= 0.75
    assert factor(weight, asked(method, rule, 29, align=30)).reason is Reason.NO_SAVING


@pytest.mark.parametrize("method", METHODS)
def test_the_weight_is_left_as_it_was(method):
    weight = gaussian(30, 24).requires_grad_()
    before = weight.detach().clone()
    found = factor(weight, asked(method, dtype=torch.float64))

    assert torch.equal(weight, before)
    assert not any(part.requires_grad for part in found.factors)


@pytest.mark.parametrize("method", METHODS)
def test_strides_do_not_matter(method):
    weight = gaussian(60, 72)[::2, ::3]

    assert factor(weight, asked(method)).relative_error == pytest.approx(
        factor(weight.contiguous(), asked(method)).relative_error, rel=1e-6
    )


@pytest.mark.parametrize(
    ("weight", "request_", "reason"),
    [
        (torch.ones(8, 8), asked(rank=4, max_rank=3), Reason.NO_SAVING),
        (torch.ones(8, 8), asked(rank=EnergyRank(0.5), max_rank=0), Reason.NO_SAVING),
        (torch.ones(8, 8), asked(rank=9, max_rank=20), Reason.NO_SAVING),
        (torch.ones(0, 8), asked(rank=1, max_rank=0), Reason.NO_SAVING),
        (torch.full((8, 8), math.nan), asked(), Reason.NOT_FINITE),
        (torch.ones(8, 8).index_fill(0, torch.tensor(5), math.inf), asked("cur"), Reason.NOT_FINITE),
        (torch.ones(8, 8).index_fill(0, torch.tensor(5), -math.inf), asked("cx"), Reason.NOT_FINITE),
        (gaussian(8, 8) * 1e30, asked(dtype=torch.float16), Reason.OUT_OF_RANGE),
        (gaussian(8, 8) * 1e30, asked("cx", dtype=torch.float16), Reason.OUT_OF_RANGE),
        (gaussian(8, 8) * 1e30, asked("cur", dtype=torch.float16), Reason.OUT_OF_RANGE),
        (gaussian(8, 8) * 1e-30, asked(dtype=torch.float16), Reason.OUT_OF_RANGE),
        (gaussian(8, 8) * 1e-30, asked("cx", dtype=torch.float16), Reason.OUT_OF_RANGE),
        (gaussian(8, 8) * 1e-7, asked("cur", dtype=torch.float16), Reason.OUT_OF_RANGE),
        (gaussian(8, 8) * 1e200, asked(dtype=torch.float64), Reason.OUT_OF_RANGE),
        (gaussian(8, 8) * 1e300, asked("cur", dtype=torch.float64), Reason.OUT_OF_RANGE),
    ],
)
def test_a_weight_is_kept_for_its_reason(weight, request_, reason):
    found = factor(weight, request_)

    assert isinstance(found, Kept)
    assert found.reason is reason
    assert found.singular_values is None or bool(found.singular_values.isfinite().all())


def test_float32_factors_of_a_large_or_small_float16_weight_are_in_range():
    for scale in (1e-7, 3e4):
        weight = (gaussian(20, 20).clamp(-2, 2) * scale).half()
        for method in METHODS:
            assert isinstance(factor(weight, asked(method)), Factored)


def test_columns_of_a_float16_weight_survive_even_under_the_normal_range():
    weight = (gaussian(20, 20) * 1e-6).half()
    found = factor(weight, asked("cx", dtype=torch.float16))

    assert isinstance(found, Factored)
    assert torch.equal(found.factors[-1], weight[:, list(found.columns)])


@pytest.mark.parametrize("method", ["cx", "cur"])
def test_a_weight_is_kept_where_the_fit_does_not_converge(method):
    weight = gaussian(30, 24).float()
    decompositions = list(solve(scaled_weight(weight).matrix, num_vectors=24, all_values=True))
    so_wrong_that_scaled_columns_overflow = -1900

    found = factor_by(
        decompositions, ScaledWeight(weight, so_wrong_that_scaled_columns_overflow), asked(method)
    )
    assert found == Kept(reason=Reason.NOT_CONVERGED)


def scaled_weight(weight):
    return ScaledWeight(weight, exponent_of(weight))


def turned(decomposition):
    return replace(decomposition, basis=decomposition.basis.roll(1, dims=1))


def repeated(decomposition):
    return replace(decomposition, basis=decomposition.basis[:1].expand_as(decomposition.basis))


@pytest.mark.parametrize("spoilt", [turned, repeated])
def test_a_decomposition_whose_error_does_not_fit_its_spectrum_is_passed_over(spoilt):
    scaled = scaled_weight(gaussian(200, 150).float())
    first, *others, last = solve(scaled.matrix, num_vectors=150, all_values=True)

    found = factor_by([spoilt(first), *map(spoilt, others), last], scaled, asked())
    assert found.relative_error == pytest.approx(found.optimal_error, rel=1e-5)
    assert found.decomposition is last


@pytest.mark.parametrize("spoilt", [turned, repeated])
@pytest.mark.parametrize("rank", [4, EnergyRank(0.5), ErrorRank(0.7)])
def test_a_weight_is_kept_where_no_decomposition_is_accurate(rank, spoilt):
    scaled = scaled_weight(gaussian(200, 150).float())
    decompositions = [spoilt(found) for found in solve(scaled.matrix, num_vectors=150, all_values=True)]

    request = asked(rank=rank, max_rank=150)
    assert factor_by(decompositions, scaled, request) == Kept(reason=Reason.NOT_CONVERGED)
    assert factor_by([], scaled, request) == Kept(reason=Reason.NOT_CONVERGED)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_known_serves_any_later_request_with_the_same_bytes(method):
    weight = gaussian(200, 150).float()
    memo = {}
    # A limit that float32 cannot meet takes the next solver, which changes nothing for those before it.
    for rank in (5, 60, EnergyRank(0.5), ErrorRank(0.9), EnergyRank(0.9996), 5, ErrorRank(0.9)):
        request = asked(method, rank=rank, max_rank=150, num_vectors=150)
        fresh, again = factor(weight, request), factor(weight, request, cache=memo)

        assert any(again.decomposition is known for known in memo.values())
        assert all(map(torch.equal, fresh.factors, again.factors))
        assert again == replace(fresh, factors=again.factors, singular_values=again.singular_values)
    assert sorted(memo) == [0, 1]


def test_no_solver_whose_result_is_known_runs_again():
    weight = gaussian(200, 150).float()
    memo = {}
    request = asked(rank=EnergyRank(0.9996), max_rank=150, num_vectors=150)
    factor(weight, request, cache=memo)

    class Full(dict):
        def __setitem__(self, solver, _):
            pytest.fail(f"solver {solver} ran")

    factor(weight, request, cache=Full(memo))
    assert len(memo) == 2


def test_what_is_known_but_wrong_is_not_believed():
    weight = gaussian(200, 150).float()
    wrong = decompose(gaussian(200, 150, seed=1).float(), num_vectors=150)
    found = factor(weight, asked(rank=20, max_rank=80, num_vectors=80), cache={0: wrong})

    assert found.decomposition is not wrong
    assert found.relative_error == pytest.approx(optimum(weight.double().numpy(), 20) / float(weight.norm()))


@pytest.mark.parametrize(
    "weight", [torch.tensor(4.0), torch.ones(4), torch.ones(4, 4, 4), torch.ones(4, 4, dtype=torch.int32)]
)
def test_what_is_no_real_matrix_is_refused(weight):
    with pytest.raises(ValueError, match="a weight must be"):
        factor(weight, asked(rank=1))
