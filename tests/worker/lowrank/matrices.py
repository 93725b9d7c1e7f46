"""Matrices with known spectra, and what float64 LAPACK says of them."""

import math
from functools import cache

import numpy as np
import scipy.linalg
import torch

HALF = (torch.float16, torch.bfloat16)


def spectrum(name, p):
    i = np.arange(1, p + 1)
    return {
        "flat": np.ones(p),
        "slow": i**-0.5,
        "fast": np.exp(-i / 5.0),
        "graded over 1e-12": np.logspace(0, -12, p),
        "tied in two": np.where(i <= p // 2, 2.0, 1.0),
        "rank 3 and noise 1e-3": np.where(i <= 3, 1.0, 1e-3),
        "rank 3 and noise 1e-6": np.where(i <= 3, 1.0, 1e-6),
        "one outlier": np.where(i <= 1, 1e4, 1.0 / i),
        "rank 3": np.where(i <= 3, 1.0, 0.0),
    }[name]


def with_spectrum(m, n, values, *, seed=0):
    left, right = _orthonormal(m, n, seed)
    return left * values[: min(m, n)] @ right.T


@cache
def _orthonormal(m, n, seed):
    rng = np.random.default_rng(seed)
    p = min(m, n)
    return tuple(np.linalg.qr(rng.standard_normal((side, p)))[0] for side in (m, n))


def gaussian(m, n, *, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((m, n)))


def hadamard(n):
    return torch.from_numpy(scipy.linalg.hadamard(n).astype(np.float64))


def product(factors, *, scale=1.0):
    """Multiply factors out in float64, input side first, the result divided by `scale`."""
    share = scale ** (1 / len(factors))
    whole = factors[0].double().numpy() / share
    for factor in factors[1:]:
        whole = (factor.double().numpy() / share) @ whole
    return whole


def optimum(matrix, rank):
    """Return the Eckart-Young error at this rank, absolute."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return math.sqrt(float((values[rank:][::-1] ** 2).sum()))


def error(matrix, factors, *, scale=1.0):
    return float(np.linalg.norm(matrix - product(factors, scale=scale)))


def leading(matrix, k, *, dtype=torch.float64):
    """Return V_k [n, k], the leading right singular vectors."""
    return torch.from_numpy(np.linalg.svd(matrix)[2][:k].T.copy()).to(dtype)


def columns_of(matrix, dtype=torch.float64):
    return torch.from_numpy(matrix.T.copy()).to(dtype)


def cx_error(matrix, columns):
    basis = np.linalg.svd(matrix[:, columns], full_matrices=False)
    kept = basis[0][:, basis[1] > 1e-14 * max(basis[1][0], 1e-300)]
    return float(np.linalg.norm(matrix - kept @ (kept.T @ matrix)))
