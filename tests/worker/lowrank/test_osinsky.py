"""worker.lowrank.osinsky: the bound as a law, and the choices of the paper."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.worker.lowrank.matrices import (
    columns_of,
    cx_error,
    hadamard,
    leading,
    optimum,
    spectrum,
    with_spectrum,
)
from worker.lowrank.osinsky import osinsky

SPECTRA = ["flat", "slow", "fast", "graded over 1e-12", "tied in two", "rank 3 and noise 1e-6", "rank 3"]


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
