"""worker/lowrank/weighted_truncation.py: what float32 measures is what float64 measures."""

import math

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import product
from tests.worker.lowrank.test_two_sided import KINDS, Layer, tail
from worker.lowrank import ErrorRank, predicted_loss
from worker.lowrank.weighting import weighted_error

KINDS_OF_FLOAT32 = [kinds for kinds in KINDS if "dead inputs" not in kinds and "tiny" not in kinds]


@pytest.mark.parametrize("kinds", KINDS_OF_FLOAT32, ids=" and ".join)
@pytest.mark.parametrize(("m", "n"), [(170, 140), (140, 170)])
@pytest.mark.parametrize("sides", ["xy", "x", "y"])
def test_errors_of_float32_are_those_of_float64(m, n, sides, kinds):
    layer = Layer(m, n, kinds, weight_dtype=torch.float32)
    statistics = layer.statistics(sides=sides)
    done = layer.factored(6, statistics, dtype=torch.bfloat16)
    exact = weighted_error(layer.weight, done.factors, statistics, centered=False)

    if sides == "xy":
        assert done.predicted_loss == pytest.approx(exact.loss, rel=1e-4)
    if exact.outputs is not None:
        assert done.output_error.squared_error == pytest.approx(exact.outputs.squared_error, rel=1e-4)
        assert done.output_error.squared_norm == pytest.approx(exact.outputs.squared_norm, rel=1e-4)
    rounded = 2**-8 * tail(layer.values(sides=sides), 0)
    best = tail(layer.values(sides=sides), 6)
    assert best * (1 - 1e-3) <= layer.loss(done, sides=sides) <= math.hypot(best, 4 * rounded)


def test_float32_is_what_measured_it_and_float64_where_an_error_is_the_limit():
    layer = Layer(170, 140, ("white", "anisotropic"), weight_dtype=torch.float32)
    statistics = layer.statistics()
    by_rank = layer.factored(6, statistics)
    by_error = layer.factored(ErrorRank(by_rank.output_error.relative_error), statistics, most=70)

    def apart(done):
        exact = predicted_loss(layer.weight, done.factors, statistics, centered=False)
        return abs(done.predicted_loss - exact) / exact

    assert by_rank.decomposition.basis.dtype == torch.float32
    assert by_rank.decomposition.axis == "columns"
    assert 1e-12 < apart(by_rank) < 1e-5
    assert apart(by_error) < 1e-12


@pytest.mark.parametrize(("m", "n"), [(170, 140), (140, 170)])
def test_the_shift_of_the_bias_is_exact(m, n):
    layer = Layer(m, n, ("white", "white"), weight_dtype=torch.float32)
    layer.x = layer.x + 3 * np.sin(np.arange(n))[:, None]
    done = layer.factored(6, layer.statistics(mean=True), correct_bias=True)

    assert done.decomposition.basis.dtype == torch.float32
    error = layer.weight.double().numpy() - product(done.factors)
    assert np.allclose(done.bias_shift.numpy(), error @ layer.x.mean(1), rtol=0, atol=1e-10)
