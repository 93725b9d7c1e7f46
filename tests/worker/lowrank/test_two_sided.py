"""worker.lowrank with both Gram matrices: the closed form, by the SVD of F^(1/2) W G^(1/2) in numpy."""

import math

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import gaussian, product
from tests.worker.lowrank.requests import asked
from tests.worker.lowrank.test_calibrated import inputs
from worker.lowrank import (
    SELECTORS,
    EnergyRank,
    ErrorRank,
    Factored,
    Kept,
    Reason,
    Statistics,
    decompose,
    factor,
    predicted_loss,
)
from worker.lowrank.calibrated import solve_calibrated
from worker.lowrank.gram import RIDGES
from worker.lowrank.scale import exponent_of
from worker.lowrank.weighting import Weighting

# Inputs and gradients, so that each kind stands on either side.
KINDS = [
    ("white", "white"),
    ("anisotropic", "correlated"),
    ("few samples", "anisotropic"),
    ("anisotropic", "few samples"),
    ("few samples", "few samples"),
    ("scaled over 8 decades", "white"),
    ("correlated", "scaled over 8 decades"),
    ("dead inputs", "few samples"),
    ("white", "dead inputs"),
    ("tiny", "huge"),
]
# The least part of the whole loss, as a norm, that a matrix stored in a dtype can tell from none.
FLOORS = {torch.float64: 1e-6, torch.float32: 1e-3}


class Layer:
    """A weight [m, n], its inputs X and the gradients Y at its outputs."""

    def __init__(self, m, n, kinds=("anisotropic", "correlated"), *, weight_dtype=torch.float64):
        self.weight = gaussian(m, n).to(weight_dtype)
        self.x, self.y = inputs(n, kinds[0], seed=1), inputs(m, kinds[1], seed=2)

    def statistics(self, dtype=torch.float64, *, sides="xy", mean=False):
        gram = torch.from_numpy(self.x @ self.x.T).to(dtype) if "x" in sides else None
        grad_gram = torch.from_numpy(self.y @ self.y.T).to(dtype) if "y" in sides else None
        average = torch.from_numpy(self.x.mean(1)).to(dtype) if mean else None
        return Statistics(gram=gram, grad_gram=grad_gram, mean=average, count=float(self.x.shape[1]))

    def weighed(self, matrix, *, sides="xy", centered=False):
        x = self.x - self.x.mean(1, keepdims=True) if centered else self.x
        right = matrix @ x if "x" in sides else matrix
        if "y" not in sides:
            return right
        # With both, per token.
        return self.y.T @ right / (math.sqrt(x.shape[1]) if "x" in sides else 1)

    def loss(self, done, **how):
        """Return ‖Yᵀ(W - Ŵ)X‖_F, with both sides over √N."""
        error = self.weight.double().numpy() - product(done.factors)
        return float(np.linalg.norm(self.weighed(error, **how)))

    def values(self, **how):
        return np.linalg.svd(self.weighed(self.weight.double().numpy(), **how), compute_uv=False)

    def factored(self, rank, statistics, *, dtype=None, most=40, **more):
        dtype = dtype or self.weight.dtype
        done = factor(self.weight, asked("svd", rank, most, dtype, statistics=statistics, **more))
        assert isinstance(done, Factored), done
        return done


def tail(values, rank):
    return math.sqrt(float((values[rank:][::-1] ** 2).sum()))


@pytest.mark.parametrize("kinds", KINDS, ids=" and ".join)
@pytest.mark.parametrize(("m", "n"), [(40, 60), (60, 40)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_is_the_closed_form_for_every_kind_of_statistics(m, n, kinds, dtype):
    layer = Layer(m, n, kinds)
    values = layer.values()
    whole = tail(values, 0)
    for rank in (1, 5, 12):
        done = layer.factored(rank, layer.statistics(dtype))
        best, floor = tail(values, rank), FLOORS[dtype] * whole

        assert layer.loss(done) <= max(best * (1 + 1e-3), floor)
        assert layer.loss(done) >= best * (1 - 1e-3) - floor
        promised = tail(done.singular_values.numpy(), rank)  # with the ridge of F
        assert promised == pytest.approx(best, rel=1e-3, abs=RIDGES[dtype] ** 0.5 * 3 * whole)
        assert math.sqrt(done.predicted_loss) == pytest.approx(layer.loss(done), rel=1e-3, abs=floor)
        assert done.relative_error < 10
        assert done.optimal_error is None
        assert done.output_error.optimal_error is None


@pytest.mark.parametrize("kinds", KINDS[:-1], ids=" and ".join)
@pytest.mark.parametrize(("m", "n"), [(150, 140), (140, 150)])
def test_float32_is_taken_only_where_the_closed_form_holds(m, n, kinds):
    layer = Layer(m, n, kinds, weight_dtype=torch.float32)
    weighting = Weighting.of(layer.statistics(), torch.device("cpu"))
    exponent = exponent_of(layer.weight)
    cascade = solve_calibrated(layer.weight, exponent, weighting, num_vectors=40)
    first, values = next(iter(cascade)), layer.values()

    assert first.basis.dtype == torch.float32
    for rank in (1, 10, 40):
        if first.is_accurate_for(rank):
            reached = tail(first.singular_values.numpy() * 2.0**exponent, rank)
            assert reached == pytest.approx(tail(values, rank), rel=2e-4)
        done = layer.factored(rank, layer.statistics())
        whole = tail(values, 0)
        assert layer.loss(done) <= max(tail(values, rank) * (1 + 1e-3), 1e-6 * whole)
        # Outputs without gradients are fitted like the others, in float32 too.
        assert done.relative_error < 10
    assert first.is_accurate_for(10) or "white" not in kinds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_storage_adds_no_more_than_its_rounding(dtype):
    layer = Layer(60, 48, weight_dtype=torch.float32)
    values, statistics = layer.values(), layer.statistics()
    done = layer.factored(12, statistics, dtype=dtype)
    best, whole = tail(values, 12), tail(values, 0)

    assert {part.dtype for part in done.factors} == {dtype}
    assert best * (1 - 1e-6) <= layer.loss(done) <= math.hypot(best, 4 * torch.finfo(dtype).eps * whole)
    loss = predicted_loss(layer.weight, done.factors, statistics, centered=False)
    assert done.predicted_loss == pytest.approx(loss, rel=1e-9)
    assert loss == pytest.approx(layer.loss(done) ** 2, rel=1e-4)


@pytest.mark.parametrize("kind", ["correlated", "few samples", "dead inputs", "scaled over 8 decades"])
@pytest.mark.parametrize(("m", "n"), [(40, 60), (60, 40), (150, 140)])
def test_gradients_alone_weigh_the_error_too(m, n, kind):
    layer = Layer(m, n, ("white", kind))
    values = layer.values(sides="y")
    done = layer.factored(8, layer.statistics(sides="y"))

    floor = 1e-6 * tail(values, 0)
    assert layer.loss(done, sides="y") <= max(tail(values, 8) * (1 + 1e-3), floor)
    assert done.output_error is None
    assert done.optimal_error is None
    assert done.predicted_loss is None


def test_units_of_other_sizes_change_nothing():
    layer = Layer(40, 60)
    plain = layer.factored(8, layer.statistics())
    sizes = np.logspace(-3, 3, 40)[np.random.default_rng(3).permutation(40)]
    layer.weight, layer.y = torch.from_numpy(sizes[:, None] * layer.weight.numpy()), layer.y / sizes[:, None]
    resized = layer.factored(8, layer.statistics())

    assert resized.predicted_loss == pytest.approx(plain.predicted_loss, rel=1e-6)
    assert np.allclose(product(resized.factors) / sizes[:, None], product(plain.factors), atol=1e-6)


def test_the_identity_of_gradients_gives_the_one_sided_result():
    layer = Layer(40, 60)
    statistics = layer.statistics(sides="x")
    one = layer.factored(9, statistics)
    both = layer.factored(
        9, Statistics(gram=statistics.gram, grad_gram=torch.eye(40).double(), count=statistics.count)
    )

    assert np.allclose(product(one.factors), product(both.factors), atol=1e-7)
    assert both.output_error.relative_error == pytest.approx(one.output_error.relative_error, rel=1e-7)


@pytest.mark.parametrize("sides", ["xy", "x"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["white", "correlated", "few samples", "constant"])
def test_a_bias_that_takes_up_the_mean_lets_the_rest_be_fitted_better(kind, dtype, sides):
    layer = Layer(40, 60)
    layer.x = inputs(60, "white" if kind == "constant" else kind) + 3 * np.sin(np.arange(60))[:, None]
    if kind == "constant":
        layer.x[::4] = 7.0
    statistics = layer.statistics(dtype, sides=sides, mean=True)
    done = layer.factored(8, statistics, correct_bias=True)
    plain = layer.factored(8, statistics)
    values = layer.values(sides=sides, centered=True)

    floor = (1e-3 if dtype == torch.float32 else 1e-6) * tail(layer.values(sides=sides), 0)
    reached = layer.loss(done, sides=sides, centered=True)
    assert tail(values, 8) * (1 - 1e-3) - floor <= reached <= max(tail(values, 8) * (1 + 1e-3), floor)
    assert reached < layer.loss(plain, sides=sides, centered=True)
    error = layer.weight.numpy() - product(done.factors)
    assert np.allclose(done.bias_shift.numpy(), error @ layer.x.mean(1), atol=1e-5)
    centered = layer.x - layer.x.mean(1, keepdims=True)
    outputs = float(np.linalg.norm(error @ centered) / np.linalg.norm(layer.weight.numpy() @ centered))
    assert done.output_error.relative_error == pytest.approx(outputs, rel=1e-4, abs=1e-6)
    assert plain.bias_shift is None
    if sides == "xy":
        again = predicted_loss(layer.weight, done.factors, statistics, centered=True)
        assert again == pytest.approx(done.predicted_loss, rel=1e-9)
        assert math.sqrt(again) == pytest.approx(reached, rel=1e-3, abs=floor)


def test_without_a_mean_no_bias_is_corrected():
    layer = Layer(40, 60)
    asked_for, plain = (
        layer.factored(8, layer.statistics(), correct_bias=correct_bias) for correct_bias in (True, False)
    )

    assert asked_for.bias_shift is None
    assert asked_for.predicted_loss == plain.predicted_loss


def test_rank_rules_go_by_the_loss():
    layer = Layer(40, 60)
    values = layer.values()
    tails = np.array([tail(values, rank) for rank in range(41)]) / tail(values, 0)

    by_error = layer.factored(ErrorRank(0.2), layer.statistics())
    by_energy = layer.factored(EnergyRank(0.97), layer.statistics())
    assert by_error.rank == int((tails > 0.2).sum())
    assert by_energy.rank == int((tails**2 > 0.03).sum())
    assert layer.loss(by_error) <= 0.2 * tail(values, 0)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("method", ["cx", "cur"])
@pytest.mark.parametrize(("m", "n"), [(50, 60), (150, 140)])
def test_columns_and_rows_are_fitted_in_the_weighted_norm_and_chosen_for_it(m, n, method, selector):
    layer = Layer(m, n)
    statistics, exact = layer.statistics(), layer.weight.numpy()
    done, one_sided = (
        factor(layer.weight, asked(method, 10, 20, torch.float64, selector=selector, statistics=each))
        for each in (statistics, layer.statistics(sides="x"))
    )
    columns = exact[:, list(done.columns)]
    fitted = columns @ np.linalg.pinv(layer.y.T @ columns) @ (layer.y.T @ exact)
    if method == "cur":
        rows = exact[list(done.rows)]
        fitted = fitted @ layer.x @ np.linalg.pinv(rows @ layer.x) @ rows
    least = float(np.linalg.norm(layer.weighed(exact - fitted)))

    assert layer.loss(done) == pytest.approx(least, rel=1e-4)
    assert tail(layer.values(), 10) * (1 - 1e-6) <= layer.loss(done) < layer.loss(one_sided)
    assert done.predicted_loss == pytest.approx(layer.loss(done) ** 2, rel=1e-6)


@pytest.mark.parametrize("selector", ["qdeim", "osinsky", "cpqr"])
def test_rows_whose_outputs_no_gradient_reaches_are_left_where_they_are(selector):
    layer = Layer(60, 50, ("white", "dead inputs"))
    done = factor(
        layer.weight, asked("cur", 12, 20, torch.float64, selector=selector, statistics=layer.statistics())
    )

    assert set(done.rows) <= set(np.flatnonzero(np.arange(60) % 3 != 1))


def test_what_a_memo_keeps_gives_the_same_bytes_again():
    layer = Layer(140, 150, ("white", "anisotropic"), weight_dtype=torch.float32)
    memo, statistics = {}, layer.statistics()
    request = asked("svd", 12, 40, torch.float32, statistics=statistics, num_vectors=30)
    first, again = (factor(layer.weight, request, cache=each) for each in (memo, memo))

    assert {each.basis.dtype for each in memo.values()} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(first.factors, again.factors, strict=True))
    assert decompose(layer.weight, num_vectors=30, statistics=statistics, cache=memo) is memo[0]


def test_numbers_out_of_range_are_a_reason_and_no_crash():
    layer = Layer(40, 60)
    huge = Statistics(
        gram=torch.from_numpy(layer.x @ layer.x.T) * 2.0**790,
        grad_gram=torch.from_numpy(layer.y @ layer.y.T) * 2.0**790,
        count=1.0,
    )
    done = factor(layer.weight, asked("svd", 4, 20, torch.float64, statistics=huge))

    assert isinstance(done, Kept)
    assert done.reason in (Reason.OUT_OF_RANGE, Reason.NOT_CONVERGED)


def test_the_public_measure_checks_what_it_is_given():
    layer = Layer(40, 60)
    statistics, half = layer.statistics(), (0.5 * layer.weight,)
    loss = predicted_loss(layer.weight, half, statistics, centered=False)

    assert loss == pytest.approx(0.25 * tail(layer.values(), 0) ** 2)
    assert predicted_loss(layer.weight, half, layer.statistics(sides="x"), centered=False) is None
    for wrong in (Statistics(gram=statistics.grad_gram), Statistics(grad_gram=statistics.gram), Statistics()):
        with pytest.raises(ValueError, match=r"inputs|gradients|no matrix"):
            predicted_loss(layer.weight, half, wrong, centered=False)
