"""worker.lowrank.svd: the truncated SVD is optimal (Eckart and Young 1936)."""

import math

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import HALF, error, gaussian, optimum, spectrum, with_spectrum
from tests.worker.lowrank.requests import asked
from worker.lowrank import factor, svd

SHAPES = [(1, 9), (9, 1), (2, 2), (40, 40), (90, 24), (24, 90), (45, 36)]
SPECTRA = [
    "flat",
    "slow",
    "fast",
    "graded over 1e-12",
    "tied in two",
    "rank 3 and noise 1e-3",
    "rank 3 and noise 1e-6",
    "one outlier",
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
EXCESS = 1e-4
# What rounding two factors to a dtype costs at most, of ‖W‖.
ROUNDING = {torch.float64: 1e-15, torch.float32: 2e-7}


def ranks(p):
    return sorted({1, max(1, p // 2), max(1, p - 1)})


# Every shape in float32, and every dtype in one shape.
SWEEP = [(shape, torch.float32) for shape in SHAPES] + [
    ((45, 36), dtype) for dtype in DTYPES if dtype != torch.float32
]


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("shape", "dtype"), SWEEP, ids=str)
def test_svd_is_within_1e_4_of_the_optimum(shape, name, dtype):
    weight = torch.from_numpy(with_spectrum(*shape, spectrum(name, min(shape)))).to(dtype)
    matrix = weight.double().numpy()
    for rank in ranks(min(shape)):
        best = optimum(matrix, rank)
        noise = 1e-14 * np.linalg.norm(matrix)

        assert error(matrix, svd(weight, rank).factors) <= math.hypot(best * (1 + EXCESS), noise)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1e-30),
        (torch.float32, 1.0),
        (torch.float32, 1e30),
        (torch.float64, 1e30),
        (torch.bfloat16, 1e-30),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", SPECTRA)
def test_stored_factors_are_within_1e_4_of_the_optimum_at_any_scale(name, dtype, scale):
    weight = torch.from_numpy(with_spectrum(45, 36, spectrum(name, 36)) * scale).to(dtype)
    matrix = weight.double().numpy() / scale
    stored = torch.float32 if dtype in HALF else dtype
    for rank in ranks(36):
        made = factor(weight, asked(method="svd", rank=rank, max_rank=36, dtype=stored))
        reached = error(matrix, made.factors, scale=scale)

        assert reached <= math.hypot(
            optimum(matrix, rank) * (1 + EXCESS), ROUNDING[stored] * np.linalg.norm(matrix)
        )
        assert made.optimal_error <= made.relative_error
        assert made.relative_error == pytest.approx(reached / np.linalg.norm(matrix), rel=1e-5, abs=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reported_optimum_and_spectrum_are_float64_lapacks(dtype):
    weight = torch.from_numpy(with_spectrum(50, 40, spectrum("slow", 40))).to(dtype)
    matrix = weight.double().numpy()
    made = factor(weight, asked(method="svd", rank=7, max_rank=40, dtype=dtype))

    assert made.optimal_error == pytest.approx(optimum(matrix, 7) / np.linalg.norm(matrix), rel=1e-5)
    assert made.singular_values.shape == (40,)
    assert made.singular_values.dtype == torch.float64
    np.testing.assert_allclose(made.singular_values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [1, 7, 20])
def test_pythagoras_holds_between_norm_energy_kept_and_error(rank, dtype):
    weight = gaussian(30, 24).to(dtype)
    made = factor(weight, asked(method="svd", rank=rank, max_rank=24, dtype=torch.float64))
    kept = float(made.singular_values[:rank].square().sum())

    assert made.squared_norm == pytest.approx(float(weight.double().square().sum()), rel=1e-12)
    assert made.squared_norm == pytest.approx(kept + made.squared_error, rel=1e-6)
    assert made.relative_error == pytest.approx(math.sqrt(made.squared_error / made.squared_norm), rel=1e-12)


@pytest.mark.parametrize("name", ["slow", "one outlier"])
@pytest.mark.parametrize("shape", [(40, 40), (90, 24)], ids=str)
def test_transposition_changes_no_error(shape, name):
    weight = torch.from_numpy(with_spectrum(*shape, spectrum(name, min(shape)))).float()
    request = asked(method="svd", rank=5, max_rank=24, dtype=torch.float32)
    straight, transposed = factor(weight, request), factor(weight.T, request)

    assert transposed.relative_error == pytest.approx(straight.relative_error, rel=1e-5)
    np.testing.assert_allclose(transposed.singular_values, straight.singular_values, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("shape", [(40, 40), (90, 24), (24, 90)], ids=str)
def test_singular_values_are_split_evenly_and_signs_are_fixed(shape):
    found = svd(gaussian(*shape), 6)
    roots = found.singular_values[:6].sqrt()

    assert found.left.shape == (shape[0], 6)
    assert found.right.shape == (6, shape[1])
    torch.testing.assert_close(found.left.norm(dim=0), roots)
    torch.testing.assert_close(found.right.norm(dim=1), roots)
    short = found.right if shape[0] >= shape[1] else found.left.mT
    largest = short.gather(1, short.abs().argmax(dim=1, keepdim=True))
    assert bool((largest > 0).all())


def test_float32_alone_misses_an_optimum_of_1e_6_and_the_solvers_do_not():
    matrix = with_spectrum(120, 120, spectrum("rank 3 and noise 1e-6", 120) / 100)
    weight = torch.from_numpy(matrix).float()
    matrix = weight.double().numpy()
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    naive = [vh[:60] * s[:60, None], u[:, :60]]
    best = optimum(matrix, 60)

    assert error(matrix, naive) > best * (1 + 10 * EXCESS)
    assert error(matrix, svd(weight, 60).factors) < best * (1 + EXCESS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must lie between 1"),
        ({"rank": 5}, "rank must lie between 1"),
        ({"rank": 2, "solver": "sketch"}, "solver must be one of auto, gram, exact"),
        ({"rank": 2, "seed": -1}, "seed must be"),
    ],
)
def test_svd_refuses_what_it_cannot_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        svd(torch.ones(4, 6), **arguments)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([[1.0, math.nan]]), "NaN or infinite"),
        (torch.tensor([[1.0, -math.inf]]), "NaN or infinite"),
        (torch.ones(3), "must be a matrix"),
        (torch.ones(0, 3), "at least one row"),
        (torch.ones(2, 2, dtype=torch.int64), "not int64"),
    ],
)
def test_svd_refuses_what_is_no_finite_matrix(weight, message):
    with pytest.raises(ValueError, match=message):
        svd(weight, 1)
