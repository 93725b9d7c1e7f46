"""worker/lowrank/products.py: products with the statistics in float32 are those of float64, made once."""

import pytest
import torch

from tests.worker.lowrank.test_two_sided import Layer
from worker.lowrank.products import WeightedProducts, evenness, times_core
from worker.lowrank.scale import ScaledWeight, exponent_of
from worker.lowrank.weighting import Weighting


def products_of(m, n, *, sides="xy", kinds=("anisotropic", "correlated")):
    layer = Layer(m, n, kinds, weight_dtype=torch.float32)
    weighting = Weighting.of(layer.statistics(sides=sides), torch.device("cpu"))
    return WeightedProducts(ScaledWeight(layer.weight, exponent_of(layer.weight)), weighting)


@pytest.mark.parametrize("sides", ["xy", "x", "y"])
@pytest.mark.parametrize(("m", "n"), [(40, 60), (60, 40), (50, 50)])
def test_products_are_those_of_the_whole_matrices(m, n, sides):
    found = products_of(m, n, sides=sides)
    matrix = found.weighting.scaled(found.scaled.matrix.double()) / found.size
    outer, inner = (
        torch.eye(size).double() if side is None else side.core
        for side, size in ((found.weighting.outputs, m), (found.weighting.inputs, n))
    )
    near_gram = matrix.mT @ outer @ matrix if m > n else matrix @ inner @ matrix.mT

    for product, exact in (
        (found.matrix, matrix),
        (found.by_outputs, outer @ matrix),
        (found.by_inputs, matrix @ inner),
        (found.near_gram, near_gram),
    ):
        assert product.dtype == torch.float32
        torch.testing.assert_close(product.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
    assert torch.equal(found.near_gram, found.near_gram.mT)
    turned = found.times_near_root(torch.eye(min(m, n))).double()
    torch.testing.assert_close(turned @ turned.mT, inner if m > n else outer, rtol=0, atol=1e-5)


def test_what_is_forgotten_is_computed_again():
    found = products_of(40, 60)
    before = found.by_inputs
    assert found.by_inputs is before
    found.forget()

    assert found.by_inputs is not before
    assert torch.equal(found.by_inputs, before)


def test_a_large_matrix_is_multiplied_by_a_few_rows_at_a_time(monkeypatch):
    side, columns = products_of(40, 60).weighting.inputs, torch.ones(60, 3)
    whole = times_core(side, columns)
    monkeypatch.setattr("worker.lowrank.products.WIDENED_ELEMENTS", 7 * 60)

    torch.testing.assert_close(times_core(side, columns), whole)


def test_evenness_says_how_far_one_direction_stands_out():
    white, common = (
        products_of(40, 60, kinds=(kind, "white")).weighting.inputs for kind in ("white", "correlated")
    )

    assert evenness(None) == 1
    assert 1 <= evenness(white) < evenness(common) <= 60**0.5
