"""worker.lowrank.factor with a Gram matrix: the result is best for the inputs of the layer."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import gaussian, product
from tests.worker.lowrank.requests import asked
from tests.worker.lowrank.test_calibrated import closed_form, expected_output_error, inputs
from worker.lowrank import (
    EnergyRank,
    ErrorRank,
    Factored,
    Kept,
    Reason,
    Statistics,
    decompose,
    factor,
    output_error,
)


def of_inputs(x, dtype=torch.float64):
    return Statistics(gram=torch.from_numpy(x @ x.T).to(dtype))


def request(rank, x, *, method="svd", dtype=torch.float32, **fields):
    statistics = None if x is None else of_inputs(x)
    most = 40 if isinstance(rank, int) else 23
    return asked(method=method, rank=rank, max_rank=most, dtype=dtype, statistics=statistics, **fields)


KINDS = ("white", "anisotropic", "correlated", "scaled over 8 decades", "dead inputs", "tiny", "huge")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "n"), [(40, 60), (60, 40), (150, 140)])
@pytest.mark.parametrize("num_vectors", [None, 20])
def test_the_output_error_is_the_closed_form_and_both_errors_are_reported(m, n, kind, num_vectors):
    weight, x = gaussian(m, n).float(), inputs(n, kind)
    exact = weight.double().numpy()
    done = factor(weight, request(12, x, num_vectors=num_vectors))
    approximation = product(done.factors)

    best, norm = closed_form(exact, x @ x.T, 12), float(np.linalg.norm(exact @ x))
    assert expected_output_error(exact, approximation, x) <= best * (1 + 1e-3)
    assert done.output_error.relative_error == pytest.approx(
        expected_output_error(exact, approximation, x) / norm, rel=1e-5
    )
    assert done.output_error.optimal_error == pytest.approx(best / norm, rel=1e-3)
    assert math.sqrt(done.output_error.squared_norm) == pytest.approx(norm, rel=1e-5)
    plain = np.linalg.norm(exact - approximation) / np.linalg.norm(exact)
    assert done.relative_error == pytest.approx(plain, rel=1e-5)
    assert done.optimal_error is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storage_adds_no_more_than_its_rounding(dtype):
    weight, x = gaussian(60, 48).to(dtype), inputs(48, "anisotropic")
    done = factor(weight, request(12, x, dtype=dtype))
    exact = weight.double().numpy()
    best = closed_form(exact, x @ x.T, 12) / float(np.linalg.norm(exact @ x))

    assert [part.dtype for part in done.factors] == [dtype] * 2
    assert (
        best <= done.output_error.relative_error <= math.hypot(best, 2 * torch.finfo(dtype).eps) * (1 + 1e-3)
    )


@pytest.mark.parametrize(("m", "n"), [(40, 60), (60, 40)])
def test_it_beats_the_plain_svd_on_anisotropic_inputs_and_loses_on_the_weight(m, n):
    weight, x = gaussian(m, n).float(), inputs(n, "anisotropic")
    exact = weight.double().numpy()
    calibrated, plain = (factor(weight, request(10, each)) for each in (x, None))

    assert plain.output_error is None
    assert expected_output_error(exact, product(calibrated.factors), x) < 0.8 * expected_output_error(
        exact, product(plain.factors), x
    )
    assert calibrated.relative_error > plain.relative_error


def test_the_identity_gives_the_plain_svd():
    weight = gaussian(40, 60).float()
    calibrated, plain = (factor(weight, request(10, each)) for each in (np.eye(60), None))

    assert np.allclose(product(calibrated.factors), product(plain.factors), atol=1e-5)
    assert calibrated.output_error.relative_error == pytest.approx(plain.relative_error, rel=1e-5)
    assert np.allclose(calibrated.singular_values, plain.singular_values, rtol=1e-5)


def test_rank_rules_go_by_the_outputs():
    weight, x = gaussian(40, 60).float(), inputs(60, "anisotropic")
    exact = weight.double().numpy()
    values = np.linalg.svd(exact @ x, compute_uv=False)
    tails = np.sqrt(np.cumsum((values**2)[::-1])[::-1]) / np.linalg.norm(values)

    by_error = factor(weight, request(ErrorRank(0.25), x))
    assert by_error.rank == int((tails > 0.25).sum())
    assert by_error.output_error.relative_error <= 0.25
    by_energy = factor(weight, request(EnergyRank(0.9), x))
    assert by_energy.rank == int((tails**2 > 0.1).sum())
    assert factor(weight, request(ErrorRank(0.25), None)).reason == Reason.NO_SAVING


@pytest.mark.parametrize("gram_dtype", [torch.float64, torch.float32])
def test_inputs_of_few_samples_need_no_more_than_their_own_rank(gram_dtype):
    weight, x = gaussian(40, 60).float(), inputs(60, "few samples")
    statistics = of_inputs(x, gram_dtype)
    done = factor(weight, replace(request(ErrorRank(0.01), x), statistics=statistics))

    assert done.rank == 6
    assert done.output_error.relative_error < 2e-3
    assert expected_output_error(weight.double().numpy(), product(done.factors), x) < 2e-3 * np.linalg.norm(
        weight.double().numpy() @ x
    )


@pytest.mark.parametrize("rank", [6, 7, 15])
@pytest.mark.parametrize("gram_dtype", [torch.float64, torch.float32])
def test_a_rank_beyond_that_of_the_inputs_is_factored_all_the_same(rank, gram_dtype):
    weight, x = gaussian(40, 60).float(), inputs(60, "few samples")
    statistics = of_inputs(x, gram_dtype)
    done = factor(weight, replace(request(rank, x), statistics=statistics))

    assert isinstance(done, Factored)
    assert (done.rank, done.factors[0].shape) == (rank, (rank, 60))
    assert done.output_error.relative_error < 2e-3


@pytest.mark.parametrize("storage", ["three", "two"])
def test_the_middle_of_cur_is_the_best_for_the_outputs(storage):
    weight, x = gaussian(40, 60).float(), inputs(60, "anisotropic")
    exact = weight.double().numpy()
    done = factor(weight, request(10, x, method="cur", storage=storage))
    c, r = exact[:, list(done.columns)], exact[list(done.rows)]
    best = c @ np.linalg.pinv(c) @ exact @ x @ np.linalg.pinv(r @ x) @ r
    plain = c @ np.linalg.pinv(c) @ exact @ np.linalg.pinv(r) @ r

    assert expected_output_error(exact, product(done.factors), x) == pytest.approx(
        expected_output_error(exact, best, x), rel=1e-4
    )
    assert expected_output_error(exact, best, x) < expected_output_error(exact, plain, x)
    assert done.output_error.optimal_error <= done.output_error.relative_error


def test_cx_reports_the_error_of_the_outputs_and_their_optimum():
    weight, x = gaussian(40, 60).float(), inputs(60, "anisotropic")
    exact = weight.double().numpy()
    done = factor(weight, request(10, x, method="cx"))
    norm = float(np.linalg.norm(exact @ x))

    assert done.output_error.relative_error == pytest.approx(
        expected_output_error(exact, product(done.factors), x) / norm, rel=1e-5
    )
    assert done.output_error.optimal_error == pytest.approx(closed_form(exact, x @ x.T, 10) / norm, rel=1e-4)


def test_what_a_memo_keeps_gives_the_same_bytes_again():
    weight, x = gaussian(140, 150).float(), inputs(150, "anisotropic")
    memo = {}
    first = factor(weight, request(12, x, num_vectors=30), cache=memo)
    assert {each.axis for each in memo.values()} == {"rows"}
    assert all(each.calibrated for each in memo.values())
    again = factor(weight, request(12, x, num_vectors=30), cache=dict(memo))

    assert all(torch.equal(a, b) for a, b in zip(first.factors, again.factors, strict=True))
    found = decompose(weight, num_vectors=30, statistics=of_inputs(x), cache=memo)
    assert any(found is each for each in memo.values())


def test_weights_that_cannot_be_factored_say_so_with_a_gram_matrix_too():
    weight, x = gaussian(40, 60).float(), inputs(60, "white")
    weight[3, 4] = math.nan
    assert factor(weight, request(4, x)) == Kept(reason=Reason.NOT_FINITE)
    assert decompose(weight, num_vectors=4, statistics=of_inputs(x)).reason == Reason.NOT_FINITE
    zero = factor(torch.zeros(40, 60), request(4, x))
    assert (zero.relative_error, zero.output_error.relative_error) == (0, 0)


def test_the_public_measure_checks_what_it_is_given():
    weight, x = gaussian(40, 60), inputs(60, "anisotropic")
    gram = torch.from_numpy(x @ x.T)
    half = (0.5 * weight,)

    assert output_error(weight, half, gram) == pytest.approx(0.5)
    for wrong in ((weight[:, :3], half, gram), (weight, half, gram[:3, :3]), (weight * math.nan, half, gram)):
        with pytest.raises(ValueError, match=r"shape|inputs|NaN"):
            output_error(*wrong)
