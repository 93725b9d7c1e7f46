import math

import pytest
import torch

from tests.lowrank.matrices import gaussian, spectrum, with_spectrum
from worker.lowrank import (
    SELECTORS,
    EnergyRank,
    ErrorRank,
    Factored,
    FactorRequest,
    Kept,
    Reason,
    factor,
    relative_error,
)
from worker.lowrank.decomposition import Decomposition, decompositions
from worker.lowrank.factor import settle
from worker.lowrank.scale import exponent_of

METHODS = ["svd", "cx", "cur"]


def asked(method="svd", rank=4, max_rank=12, dtype=torch.float32, **more):
    return FactorRequest(method=method, rank=rank, max_rank=max_rank, dtype=dtype, **more)


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


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("shape", [(40, 40), (90, 24), (24, 90)], ids=str)
def test_every_step_of_the_ladder_finds_the_same_decomposition(shape, vectors):
    weight = torch.from_numpy(with_spectrum(*shape, spectrum("slow", min(shape)))).float()
    exponent = exponent_of(weight)
    steps = list(decompositions(weight, exponent, vectors=vectors))
    expected = torch.linalg.svdvals(weight.double()) * 2.0**-exponent

    assert [step.dtype for step in steps] == [torch.float32, torch.float64, torch.float64]
    for step in steps:
        torch.testing.assert_close(step.singular_values, expected, rtol=1e-5, atol=1e-6)
        if vectors:
            left, right = step.vectors(6)
            middle = (left.double().mT @ weight.double() @ right.double().mT) * 2.0**-exponent
            torch.testing.assert_close(middle, torch.diag(expected[:6]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("shape", [(40, 40), (90, 24)], ids=str)
def test_steps_that_do_not_converge_are_passed_over(shape, vectors):
    beyond_lapack = torch.full(shape, math.nan)

    assert list(decompositions(beyond_lapack, 0, vectors=vectors)) == []


@pytest.mark.parametrize("method", ["cx", "cur"])
def test_a_weight_is_kept_where_the_fit_does_not_converge(method):
    weight = gaussian(30, 24).float()
    ladder = list(decompositions(weight, exponent_of(weight)))
    so_wrong_that_scaled_columns_overflow = -1900

    found = settle(weight, so_wrong_that_scaled_columns_overflow, asked(method), ladder)
    assert found == Kept(reason=Reason.NOT_CONVERGED)


def spoilt(decomposition):
    u, vh = decomposition.vectors(decomposition.singular_values.numel())
    return Decomposition(decomposition.singular_values, decomposition.dtype, u.roll(1, dims=1), vh)


def test_a_decomposition_whose_error_does_not_fit_its_spectrum_is_passed_over():
    weight = gaussian(30, 24).float()
    first, second, third = decompositions(weight, exponent_of(weight))

    found = settle(weight, exponent_of(weight), asked(), iter([spoilt(first), spoilt(second), third]))
    assert found.relative_error == pytest.approx(found.optimal_error, rel=1e-5)


@pytest.mark.parametrize("rank", [4, EnergyRank(0.5), ErrorRank(0.7)])
def test_a_weight_is_kept_where_no_decomposition_is_accurate(rank):
    weight = gaussian(30, 24).float()
    ladder = [spoilt(step) for step in decompositions(weight, exponent_of(weight))]

    request = asked(rank=rank, max_rank=24)
    assert settle(weight, exponent_of(weight), request, ladder) == Kept(reason=Reason.NOT_CONVERGED)
    assert settle(weight, exponent_of(weight), request, []) == Kept(reason=Reason.NOT_CONVERGED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "qr"}, "method must be one of svd, cur, cx"),
        ({"storage": "one"}, "storage must be one of three, two"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"max_rank": -1}, "max_rank must be at least 0"),
        ({"dtype": torch.int8}, "factors cannot be stored as"),
        ({"selector": "best"}, "selector must be one of"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        asked(**change)


@pytest.mark.parametrize(
    "weight", [torch.tensor(4.0), torch.ones(4), torch.ones(4, 4, 4), torch.ones(4, 4, dtype=torch.int32)]
)
def test_what_is_no_real_matrix_is_refused(weight):
    with pytest.raises(ValueError, match="a weight must be"):
        factor(weight, asked(rank=1))
