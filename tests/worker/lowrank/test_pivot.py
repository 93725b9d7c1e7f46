"""worker/lowrank/pivot.py: the product of svd in k(m + n - k) numbers, no coefficient above 2."""

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import gaussian, hadamard, spectrum, with_spectrum
from tests.worker.lowrank.requests import asked
from worker.lowrank import ErrorRank, Kept, Reason, Statistics, factor, join_rows, relative_error


def kahan(n, angle=1.2):
    """Return Kahan's matrix, on which pivoted elimination does not see the small singular value."""
    sine, cosine = np.sin(angle), np.cos(angle)
    return torch.from_numpy(
        sine ** np.arange(n)[:, None] * (np.eye(n) - cosine * np.triu(np.ones((n, n)), 1))
    )


MATRICES = {
    "gaussian, tall": gaussian(150, 90),
    "gaussian, wide": gaussian(60, 200),
    "power law": torch.from_numpy(with_spectrum(120, 130, spectrum("slow", 120))),
    "fast": torch.from_numpy(with_spectrum(120, 100, spectrum("fast", 100))),
    "kahan": kahan(100),
    "kahan, transposed": kahan(100).T.contiguous(),
    "hadamard": hadamard(128),
    "blocks": torch.block_diag(*(gaussian(10, 12, seed=i) for i in range(8))),
    "duplicated rows": gaussian(30, 50).repeat(4, 1),
    "zero rows": gaussian(90, 60) * (torch.arange(90) % 3 > 0)[:, None],
    "rank 3": torch.from_numpy(with_spectrum(80, 70, spectrum("rank 3", 70))),
    "one row": torch.eye(40, 50, dtype=torch.float64) * (torch.arange(40) == 7)[:, None],
    "zero": torch.zeros(20, 30, dtype=torch.float64),
    "tiny": gaussian(50, 60) * 1e-30,
    "large": gaussian(50, 60) * 1e30,
}


def stored_product(found, *, scale=1.0):
    rows, coefficients, indices = found.factors
    rows = rows.double() / scale
    return join_rows(rows, coefficients.double() @ rows, indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MATRICES)
def test_the_product_is_that_of_svd_with_bounded_coefficients(name, dtype):
    weight = MATRICES[name].to(dtype)
    (m, n), p = weight.shape, min(weight.shape)
    scale = float(weight.double().norm()) or 1.0
    for rank in {1, p // 3, p // 2, p - 2, p - 1}:
        made = {method: factor(weight, asked(method, rank, p, dtype)) for method in ("svd", "pivot")}
        right, left = (tensor.double() / scale**0.5 for tensor in made["svd"].factors)
        difference = torch.linalg.norm(stored_product(made["pivot"], scale=scale) - left @ right)
        assert float(difference) <= (1e-6 if dtype == torch.float32 else 1e-13)
        rows, coefficients, indices = made["pivot"].factors
        assert float(coefficients.abs().max()) <= 2
        assert (rows.shape, coefficients.shape) == ((rank, n), (m - rank, rank))
        assert rows.numel() + coefficients.numel() == rank * (m + n - rank)
        assert indices.dtype == torch.int32
        assert tuple(indices.tolist()) == made["pivot"].rows == tuple(sorted(set(indices.tolist())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["slow", "fast", "graded over 1e-12", "rank 3"])
def test_the_error_is_that_of_the_stored_tensors(name, dtype):
    weight = torch.from_numpy(with_spectrum(90, 80, spectrum(name, 80))).float()
    found = factor(weight, asked("pivot", 30, 79, dtype))

    difference = weight.double() - stored_product(found)
    expected = float(difference.norm() / weight.double().norm())
    assert found.relative_error == pytest.approx(expected, rel=1e-4)
    assert float(found.factors[1].abs().max()) <= 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("calibrated", [False, True])
def test_coefficients_are_fitted_to_rows_that_rounding_changed(dtype, calibrated):
    """At rank 40 of a matrix of rank 3 the rounded rows have room for the fit: it is several times better."""
    weight = torch.from_numpy(with_spectrum(90, 80, spectrum("rank 3", 80))).float()
    x = gaussian(80, 30)
    statistics = Statistics(gram=x @ x.T) if calibrated else None
    found = factor(weight, asked("pivot", 40, 79, dtype, statistics=statistics))

    exact = factor(weight, asked("pivot", 40, 79, torch.float32, statistics=statistics))
    rows, _, indices = found.factors
    plain = join_rows(rows.double(), exact.factors[1].to(dtype).double() @ rows.double(), indices)
    side = x if calibrated else torch.eye(80, dtype=torch.float64)

    def error(product):
        return float(((weight.double() - product) @ side).norm())

    assert torch.equal(indices, exact.factors[2])
    assert error(stored_product(found)) < 0.6 * error(plain)


@pytest.mark.parametrize("rows", [15, 60])
def test_with_a_gram_matrix_the_product_and_its_errors_are_those_of_svd(rows):
    weight, x = gaussian(rows, 40, seed=1).float(), gaussian(40, 25, seed=2)
    request = {"statistics": Statistics(gram=x @ x.T)}
    found, svd = (factor(weight, asked(method, 12, 40, **request)) for method in ("pivot", "svd"))

    right, left = (tensor.double() for tensor in svd.factors)
    assert float((stored_product(found) - left @ right).norm()) <= 1e-5 * float((left @ right).norm())
    assert found.output_error.relative_error == pytest.approx(svd.output_error.relative_error, rel=1e-5)
    assert found.relative_error == pytest.approx(svd.relative_error, rel=1e-5)


def test_a_limit_on_the_error_is_met_at_the_rank_of_svd():
    weight = torch.from_numpy(with_spectrum(120, 100, spectrum("slow", 100))).float()
    found, svd = (factor(weight, asked(method, ErrorRank(0.2), 99)) for method in ("pivot", "svd"))

    assert found.rank == svd.rank
    assert relative_error(weight, (stored_product(found),)) <= 0.2


def test_a_dtype_that_cannot_hold_the_rows_is_an_outcome():
    found = factor(MATRICES["large"].float(), asked("pivot", 4, 49, torch.float16))

    assert isinstance(found, Kept)
    assert found.reason == Reason.OUT_OF_RANGE
