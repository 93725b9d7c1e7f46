"""The pivoted selectors against the textbook, and Osinsky's bound as a law."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.lowrank.matrices import gaussian, hadamard, optimum, spectrum, with_spectrum
from worker.lowrank.osinsky import osinsky
from worker.lowrank.pivoting import BLOCKED_WORK, blocked_qr_pivots, lu_pivots, qr_pivots
from worker.lowrank.selectors import SELECTORS, select
from worker.lowrank.solvers import solve_for

SPECTRA = ["flat", "slow", "fast", "graded over 1e-12", "tied in two", "rank 3 and noise 1e-6", "rank 3"]


def leading(matrix, k, *, dtype=torch.float64):
    """Return V_k [n, k], the leading right singular vectors."""
    return torch.from_numpy(np.linalg.svd(matrix)[2][:k].T.copy()).to(dtype)


def columns_of(matrix, dtype=torch.float64):
    return torch.from_numpy(matrix.T.copy()).to(dtype)


def cx_error(matrix, columns):
    basis = np.linalg.svd(matrix[:, columns], full_matrices=False)
    kept = basis[0][:, basis[1] > 1e-14 * max(basis[1][0], 1e-300)]
    return float(np.linalg.norm(matrix - kept @ (kept.T @ matrix)))


def deim_of_the_paper(vectors):
    """Interpolate each singular vector at the indices so far, and take where that is worst."""
    chosen = [int(np.abs(vectors[:, 0]).argmax())]
    for j in range(1, vectors.shape[1]):
        known = vectors[:, :j]
        rest = vectors[:, j] - known @ np.linalg.solve(known[chosen], vectors[chosen, j])
        chosen.append(int(np.abs(rest).argmax()))
    return chosen


def osinsky_of_the_paper(matrix, basis):
    """Take the least ‖e_j‖²/‖b_j‖², one at a time, the matrices written out."""
    b = basis.T.copy()
    e = matrix - (matrix @ b.T) @ b
    chosen = []
    for _ in range(len(b)):
        sizes = (b**2).sum(0)
        quotients = np.where(sizes > 1e-10, (e**2).sum(0) / np.maximum(sizes, 1e-10), np.inf)
        quotients[chosen] = np.inf
        j = int(quotients.argmin())
        weights = b[:, j] @ b / sizes[j]
        e -= np.outer(e[:, j], weights)
        b -= np.outer(b[:, j], weights)
        chosen.append(j)
    return chosen


@pytest.mark.parametrize("name", ["slow", "fast", "tied in two"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_deim_interpolates_where_the_paper_does(name, dtype):
    vectors = leading(with_spectrum(50, 70, spectrum(name, 50)), 20, dtype=dtype)

    assert lu_pivots(vectors) == deim_of_the_paper(vectors.double().numpy())


@pytest.mark.parametrize("name", ["slow", "fast", "one outlier"])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (70, 300)], ids=str)
def test_osinsky_takes_what_the_paper_takes(shape, name):
    matrix = with_spectrum(*shape, spectrum(name, min(shape)))
    basis = leading(matrix, 25)

    assert osinsky(columns_of(matrix), basis) == osinsky_of_the_paper(matrix, basis.numpy())


def structured():
    """Return matrices that are hard on a selector, by name."""
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((24, 36))
    angle = 0.3
    kahan = np.diag(np.sin(angle) ** np.arange(30)) @ (
        np.eye(30) - np.cos(angle) * np.triu(np.ones((30, 30)), 1)
    )
    return {
        "gaussian": plain,
        "twins": np.repeat(plain[:, :12], 3, axis=1),
        "empty columns": plain * (np.arange(36) % 3 == 0),
        "columns of all sizes": plain * np.logspace(0, -20, 36),
        "blocks": scipy.linalg.block_diag(plain, 1e-3 * plain, np.ones((5, 5))),
        "kahan": kahan,
        "hilbert": scipy.linalg.hilbert(24),
        "hadamard": hadamard(32).numpy(),
        "diagonal": np.diag(rng.permutation(np.logspace(0, -8, 30))),
        "ones": np.ones((20, 30)),
        "zero": np.zeros((20, 30)),
        "one entry": np.eye(20, 30) * (np.arange(30) == 7),
        "more rows": plain.T,
        "one row": plain[:1],
    }


@pytest.mark.parametrize("name", list(structured()))
def test_osinsky_keeps_its_bound_on_structured_matrices(name):
    matrix = structured()[name]
    norm = float(np.linalg.norm(matrix))
    for k in {1, 2, 5, min(matrix.shape) // 2 or 1, min(matrix.shape)}:
        if k > min(matrix.shape):
            continue
        chosen = osinsky(columns_of(matrix), leading(matrix, k))

        assert len(set(chosen)) == k
        assert cx_error(matrix, chosen) <= math.sqrt(k + 1) * optimum(matrix, k) * (1 + 1e-6) + 1e-13 * norm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (48, 400)], ids=str)
def test_osinsky_keeps_its_bound_for_any_spectrum(shape, name, dtype):
    for seed in range(3):
        matrix = with_spectrum(*shape, spectrum(name, min(shape)), seed=seed)
        noise = 30 * torch.finfo(dtype).eps * float(np.linalg.norm(matrix))
        for k in (1, 3, 10, 25):
            chosen = osinsky(columns_of(matrix, dtype), leading(matrix, k, dtype=dtype))

            assert len(set(chosen)) == k
            assert cx_error(matrix, chosen) <= math.sqrt(k + 1) * (optimum(matrix, k) * (1 + 1e-6) + noise)


@pytest.mark.parametrize("k", [1, 3, 8, 20, 63])
@pytest.mark.parametrize("delta", [1.0, 1e-2, 1e-6])
def test_on_the_simplex_osinsky_meets_its_bound_and_no_more(k, delta):
    vertices = np.linalg.qr(np.eye(k + 1) - 1 / (k + 1))[1][:k]
    matrix = np.vstack((vertices, np.full((1, k + 1), delta)))
    ratio = cx_error(matrix, osinsky(columns_of(matrix), leading(matrix, k))) / optimum(matrix, k)

    assert ratio <= math.sqrt(k + 1) * (1 + 1e-6)
    if delta < 1e-5:
        assert ratio == pytest.approx(math.sqrt(k + 1), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(100, 700), (300, 600)], ids=str)
def test_qr_by_blocks_has_the_pivots_of_lapack(shape, dtype):
    vectors = columns_of(with_spectrum(*shape, spectrum("slow", min(shape))), dtype)
    k = min(shape) // 2
    expected = scipy.linalg.qr(vectors.numpy().T, mode="r", pivoting=True)[1][:k].tolist()

    assert qr_pivots(vectors, k) == expected
    assert blocked_qr_pivots(vectors, k) == expected


def test_a_large_weight_has_the_columns_that_lapack_chooses():
    weight = gaussian(1050, 1050).float()
    chosen = select("cpqr", 256, axis="columns", matrix=weight, decomposition=None, seed=0)
    expected = scipy.linalg.qr(weight.numpy(), mode="r", pivoting=True)[1][:256].tolist()

    assert weight.numel() * 256 >= BLOCKED_WORK
    # Rounding in float32 may decide between two columns of the same length.
    assert len(set(chosen) & set(expected)) >= 240
    matrix = weight.double().numpy()
    assert cx_error(matrix, chosen) == pytest.approx(cx_error(matrix, expected), rel=1e-3)


@pytest.mark.parametrize("name", [*SPECTRA, "one outlier"])
def test_qr_by_blocks_never_takes_a_much_nearer_vector(name):
    vectors = columns_of(with_spectrum(120, 500, spectrum(name, 120)))
    chosen = blocked_qr_pivots(vectors, 100)
    rest = vectors.clone()

    assert len(set(chosen)) == 100
    for pivot in chosen:
        lengths = torch.linalg.vector_norm(rest, dim=1)
        if float(lengths.max()) < 1e-12:
            break
        assert float(lengths[pivot]) >= 0.89 * float(lengths.max())
        direction = rest[pivot] / lengths[pivot]
        rest -= torch.outer(rest @ direction, direction)


@pytest.mark.parametrize("name", ["slow", "fast", "graded over 1e-12"])
def test_choices_by_blocks_are_as_good_as_one_by_one(name):
    matrix = with_spectrum(150, 600, spectrum(name, 150))
    vectors, basis = columns_of(matrix), leading(matrix, 60)
    by_lapack = scipy.linalg.qr(matrix, mode="r", pivoting=True)[1][:60].tolist()
    by_paper = osinsky_of_the_paper(matrix, basis.numpy())

    assert cx_error(matrix, blocked_qr_pivots(vectors, 60)) <= 1.05 * cx_error(matrix, by_lapack)
    assert cx_error(matrix, osinsky(vectors, basis)) <= 1.05 * cx_error(matrix, by_paper)


@pytest.mark.parametrize("rank_of_it", [0, 1, 3])
def test_blocks_choose_distinct_vectors_where_few_or_none_are_independent(rank_of_it):
    matrix = with_spectrum(80, 400, np.where(np.arange(80) < rank_of_it, 1.0, 0.0))
    vectors = columns_of(matrix)

    for chosen in (blocked_qr_pivots(vectors, 70), osinsky(vectors, leading(matrix, 70))):
        assert len(set(chosen)) == 70
        assert cx_error(matrix, chosen) <= 1e-12


@pytest.mark.parametrize("selector", SELECTORS)
def test_selectors_do_not_change_what_they_are_given(selector):
    matrix = gaussian(300, 300)
    before, decomposition = matrix.clone(), solve_for(matrix, 40)
    basis = decomposition.basis.clone()
    for axis in ("columns", "rows"):
        select(selector, 40, axis=axis, matrix=matrix, decomposition=decomposition, seed=0)

    assert torch.equal(matrix, before)
    assert torch.equal(decomposition.basis, basis)
