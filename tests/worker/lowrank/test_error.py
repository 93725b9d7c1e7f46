"""worker.lowrank.error: the measured error is that of the factors as stored."""

import math

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import error, gaussian
from worker.lowrank import relative_error, svd
from worker.lowrank.error import BLOCK_ELEMENTS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shapes", [[(30, 20)], [(3, 20), (30, 3)], [(3, 20), (3, 3), (30, 3)], [(3, 30), (3, 3), (20, 3)]]
)
def test_the_error_is_that_of_the_product_of_the_factors_as_stored(shapes, dtype):
    factors = [gaussian(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]
    weight = gaussian(shapes[-1][0], shapes[0][1], seed=9).to(dtype)
    matrix = weight.double().numpy()

    assert relative_error(weight, factors) == pytest.approx(
        error(matrix, factors) / np.linalg.norm(matrix), rel=1e-6
    )


def test_blocks_of_rows_leave_nothing_out():
    columns = 1 << 12
    rows = 2 * BLOCK_ELEMENTS // columns + 3
    weight = torch.zeros(rows, columns)
    weight[-1, -1] = 3.0
    weight[0, 0] = 4.0

    assert relative_error(weight, (torch.zeros(1, columns), torch.zeros(rows, 1))) == 1.0
    left, right = torch.zeros(rows, 1), torch.zeros(1, columns)
    left[-1, 0], right[0, -1] = 3.0, 1.0
    assert relative_error(weight, (right, left)) == pytest.approx(0.8)


@pytest.mark.parametrize("tiny", [1e-4, 1e-6])
def test_an_error_that_float32_products_would_drown_is_measured(tiny):
    left, right = gaussian(200, 60, seed=1).float(), gaussian(60, 150, seed=2).float()
    exact = left.double() @ right.double()
    weight = exact + tiny * exact.norm() * torch.eye(200, 150) / math.sqrt(150)

    assert relative_error(weight.float(), (right, left)) == pytest.approx(tiny, rel=2e-2)


def test_large_factors_that_cancel_are_measured_in_float64():
    base = gaussian(40, 1, seed=1)
    left = (base + 1e-5 * gaussian(40, 8, seed=2)).float()  # eight columns, nearly the same
    right = (1e5 * gaussian(8, 30, seed=3)).float()
    right -= right.mean(dim=0)
    weight = (left.double() @ right.double() + 0.1 * gaussian(40, 30, seed=4)).float()
    matrix = weight.double().numpy()

    assert relative_error(weight, (right, left)) == pytest.approx(
        error(matrix, (right, left)) / np.linalg.norm(matrix), rel=1e-6
    )


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-80, 2.0**80, 2.0**1000])
def test_no_scale_over_or_underflows(scale):
    weight = gaussian(20, 15)
    found = svd(weight, 4)
    scaled = (found.right, found.left * scale)

    assert relative_error(weight * scale, scaled) == pytest.approx(
        relative_error(weight, found.factors), rel=1e-12
    )


@pytest.mark.parametrize(
    "powers", [(120, -70, -70), (-120, 70, 70), (100, -100, 100), (0, 0, 100), (-100, 0, 0)]
)
def test_it_does_not_matter_which_factor_carries_the_scale(powers):
    shapes = [(3, 20), (3, 3), (15, 3)]  # Fewer rows than columns: left times middle comes first.
    factors = [gaussian(*shape, seed=i).float() for i, shape in enumerate(shapes)]
    weight = gaussian(15, 20, seed=9).float()
    heavy = [part * 2.0**power for part, power in zip(factors, powers, strict=True)]

    assert relative_error(weight * 2.0 ** sum(powers), heavy) == pytest.approx(
        relative_error(weight, factors), rel=1e-6
    )


def test_nothing_over_nothing_is_no_error():
    weight = torch.zeros(4, 5)

    assert relative_error(weight, (torch.zeros(1, 5), torch.zeros(4, 1))) == 0.0
    assert relative_error(weight, (torch.ones(1, 5), torch.ones(4, 1))) == math.inf


@pytest.mark.parametrize(
    "shapes",
    [[(5, 4)], [(2, 6), (4, 2)], [(2, 5), (4, 3)], [(2, 5), (3, 2)], [(2, 5), (2, 2), (2, 2), (4, 2)]],
)
def test_factors_that_do_not_multiply_to_the_weight_are_refused(shapes):
    with pytest.raises(ValueError, match="do not multiply to a weight of shape"):
        relative_error(torch.ones(4, 5), [torch.ones(*shape) for shape in shapes])


def test_a_weight_that_is_not_finite_has_no_relative_error():
    with pytest.raises(ValueError, match="not defined"):
        relative_error(torch.full((4, 5), math.nan), (torch.ones(1, 5), torch.ones(4, 1)))
