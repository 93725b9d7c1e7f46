"""worker.lowrank.calibrated with one Gram matrix: the closed form, by the SVD of W G^(1/2) in numpy."""

import math

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import gaussian
from worker.lowrank import Statistics
from worker.lowrank.calibrated import solve_calibrated
from worker.lowrank.scale import exponent_of
from worker.lowrank.weighting import Weighting, measure_weighted

SHAPES = [(40, 60), (60, 40), (48, 48), (1, 30), (30, 1)]


def inputs(n, kind, *, seed=1):
    """Return inputs X [n, samples] of a kind."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6 if kind == "few samples" else 4 * n))
    turn = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return {
        "white": lambda: x,
        "anisotropic": lambda: turn @ (x * np.logspace(0, -2, n)[:, None]),
        "correlated": lambda: x + 20 * x[:1],
        "few samples": lambda: turn @ x,
        "scaled over 8 decades": lambda: x * rng.permutation(np.logspace(0, -8, n))[:, None],
        "dead inputs": lambda: x * (np.arange(n) % 3 != 1)[:, None],
        "tiny": lambda: x * 1e-15,
        "huge": lambda: x * 1e15,
    }[kind]()


KINDS = ("white", "anisotropic", "correlated", "few samples", "scaled over 8 decades", "dead inputs")


def root(gram):
    """Return S with S Sᵀ = G, well scaled or not."""
    scale = np.sqrt(np.diag(gram))
    scale[scale == 0] = 1
    values, vectors = np.linalg.eigh(gram / scale / scale[:, None])
    return scale[:, None] * vectors * np.sqrt(np.clip(values, 0, None))


def closed_form(weight, gram, rank):
    """Return the least ‖(W - Ŵ)X‖_F there is at this rank."""
    values = np.linalg.svd(weight @ root(gram), compute_uv=False)
    return math.sqrt(float((values[rank:][::-1] ** 2).sum()))


def expected_output_error(weight, approximation, x):
    return float(np.linalg.norm((weight - approximation) @ x))


def weighting_of(gram):
    return Weighting.of(Statistics(gram=gram), torch.device("cpu"))


def measure_output_error(weight, factors, exponent, gram):
    return measure_weighted(weight, factors, exponent, weighting_of(gram)).outputs


def projections(weight, gram, *, num_vectors=None):
    """Yield W projected to any rank, by every solver of the cascade."""
    exponent = exponent_of(weight)
    weighting, num_vectors = weighting_of(gram), num_vectors or min(weight.shape)
    for found in solve_calibrated(weight, exponent, weighting, num_vectors=num_vectors):
        basis = found.basis.double()
        assert found.axis == "rows"
        assert torch.allclose(basis @ basis.mT, torch.eye(len(basis), dtype=torch.float64), atol=1e-9)
        yield found, exponent, lambda k, basis=basis: (basis[:k].mT @ (basis[:k] @ weight.double())).numpy()


@pytest.mark.parametrize("kind", [*KINDS, "tiny", "huge"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_every_solver_reaches_the_closed_form(m, n, kind):
    weight, x = gaussian(m, n), inputs(n, kind)
    gram = x @ x.T
    norm = float(np.linalg.norm(weight.numpy() @ x))
    count = 0
    for found, exponent, project in projections(weight, torch.from_numpy(gram)):
        values = found.singular_values * 2.0**exponent
        assert values.shape == (min(m, n),)
        expected = np.linalg.svd(weight.numpy() @ root(gram), compute_uv=False)
        noise = math.sqrt(found.roundoff) + 1e-8
        assert np.allclose(values, expected[: len(values)], rtol=1e-4, atol=noise * norm)
        for rank in {1, min(m, n) // 4 or 1, min(m, n) // 2 or 1, min(m, n)}:
            best = closed_form(weight.numpy(), gram, rank)
            reached = expected_output_error(weight.numpy(), project(rank), x)
            assert reached <= math.hypot(best * (1 + 1e-4), noise * norm)
        count += 1
    assert count == 3


@pytest.mark.parametrize("kind", ["anisotropic", "correlated", "few samples", "scaled over 8 decades"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gram_dtype", [torch.float64, torch.float32])
def test_the_closed_form_holds_to_1e_3_for_every_dtype_of_weight_and_gram(kind, dtype, gram_dtype):
    weight, x = gaussian(64, 48).to(dtype), inputs(48, kind)
    gram, exact = torch.from_numpy(x @ x.T).to(gram_dtype), weight.double().numpy()
    found, _, project = next(projections(weight, gram))

    for rank in (4, 12, 20):
        best = closed_form(exact, x @ x.T, rank)
        floor = 1e-3 if gram_dtype == torch.float32 else 1e-7  # what float32 can tell of XXᵀ
        norm = float(np.linalg.norm(exact @ x))
        assert expected_output_error(exact, project(rank), x) <= max(best * (1 + 1e-3), floor * norm)
    assert found.roundoff < 1e-10


@pytest.mark.parametrize(("m", "n"), SHAPES[:3])
def test_anisotropic_inputs_are_served_far_better_than_by_the_plain_svd(m, n):
    weight, x = gaussian(m, n), inputs(n, "anisotropic")
    plain, spectrum, right = np.linalg.svd(weight.numpy(), full_matrices=False)
    _, _, project = next(projections(weight, torch.from_numpy(x @ x.T)))

    for rank in (4, 10, 20):
        by_weight = (plain[:, :rank] * spectrum[:rank]) @ right[:rank]
        assert expected_output_error(weight.numpy(), project(rank), x) < 0.8 * expected_output_error(
            weight.numpy(), by_weight, x
        )


@pytest.mark.parametrize(("m", "n"), SHAPES[:3])
@pytest.mark.parametrize("factor", [1.0, 1e-30, 1e30])
def test_white_inputs_of_any_size_give_the_plain_svd(m, n, factor):
    weight, gram = gaussian(m, n), factor * torch.eye(n, dtype=torch.float64)
    left, spectrum, _ = np.linalg.svd(weight.numpy(), full_matrices=False)
    for found, exponent, project in projections(weight, gram):
        assert np.allclose(found.singular_values * 2.0**exponent, spectrum * math.sqrt(factor), rtol=1e-9)
        assert np.allclose(project(5), left[:, :5] @ left[:, :5].T @ weight.numpy(), atol=1e-9)


@pytest.mark.parametrize("gram_dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("m", "n"), [(40, 60), (60, 40)])
def test_beyond_the_rank_of_the_inputs_the_plain_error_decides_each_input_by_its_size(m, n, gram_dtype):
    weight, x = gaussian(m, n), inputs(n, "few samples")
    left, _, _ = np.linalg.svd(weight.numpy() @ x, full_matrices=False)
    sized = weight.numpy() * np.linalg.norm(x, axis=1)
    rest = sized - left @ (left.T @ sized)  # what no fit to these inputs asks for
    values = np.linalg.svd(rest, compute_uv=False)
    for _, _, project in projections(weight, torch.from_numpy(x @ x.T).to(gram_dtype)):
        for rank in (6, 12, 20):
            best = math.sqrt(float((values[rank - 6 :] ** 2).sum()))
            reached = np.linalg.norm((weight.numpy() - project(rank)) * np.linalg.norm(x, axis=1))
            assert reached <= 1.003 * best


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gram_dtype", [torch.float64, torch.float32])
def test_the_measured_error_is_that_of_the_outputs(kind, gram_dtype):
    weight, x = gaussian(40, 60), inputs(60, kind)
    gram = torch.from_numpy(x @ x.T).to(gram_dtype)
    factors = (gaussian(7, 60, seed=3).float(), gaussian(40, 7, seed=4).half())
    product = factors[1].double().numpy() @ factors[0].double().numpy()
    found = measure_output_error(weight, factors, exponent_of(weight), gram)

    assert math.sqrt(found.squared_error) == pytest.approx(
        expected_output_error(weight.numpy(), product, x), rel=1e-5
    )
    assert math.sqrt(found.squared_norm) == pytest.approx(np.linalg.norm(weight.numpy() @ x), rel=1e-5)


def test_an_exact_product_has_no_error_however_rounding_falls():
    weight, x = gaussian(30, 40).float(), inputs(40, "few samples")
    gram = torch.from_numpy(x @ x.T).float()

    assert measure_output_error(weight, (weight,), exponent_of(weight), gram).scaled_error == 0
    left, spectrum, right = torch.linalg.svd(weight.double(), full_matrices=False)
    close = measure_output_error(weight, (right, left * spectrum), exponent_of(weight), gram)
    assert 0 <= close.relative < 1e-6


def test_the_root_of_the_inputs_stands_for_them_in_any_norm():
    error, x = gaussian(20, 30), inputs(30, "correlated")
    matrix = weighting_of(torch.from_numpy(x @ x.T)).weigh_inputs(error).numpy()
    outputs = error.numpy() @ x

    assert np.allclose(matrix @ matrix.T, outputs @ outputs.T, atol=1e-6 * np.abs(outputs @ outputs.T).max())


def test_the_same_input_gives_the_same_bits():
    weight, x = gaussian(40, 60).float(), inputs(60, "anisotropic")
    first, second = (next(projections(weight, torch.from_numpy(x @ x.T)))[0] for _ in range(2))

    assert torch.equal(first.basis, second.basis)
    assert torch.equal(first.singular_values, second.singular_values)


def test_only_as_many_vectors_come_as_are_wanted():
    for found, _, _ in projections(gaussian(40, 60), torch.eye(60, dtype=torch.float64), num_vectors=7):
        assert found.basis.shape == (7, 40)
        assert found.singular_values.shape == (40,)
