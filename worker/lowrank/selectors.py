"""Which columns or rows to keep: k distinct indices, deterministic under the seed."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch

from worker.lowrank.decomposition import Decomposition

Selector = Literal["qdeim", "cpqr", "leverage", "linear_time"]
SELECTORS: tuple[Selector, ...] = ("qdeim", "cpqr", "leverage", "linear_time")
# These look at singular vectors, the others at the matrix itself.
SPECTRAL: tuple[Selector, ...] = ("qdeim", "leverage")

Axis = Literal["columns", "rows"]
Indices = tuple[int, ...]


def select(
    selector: Selector,
    rank: int,
    *,
    axis: Axis,
    matrix: torch.Tensor,
    decomposition: Decomposition | None,
    seed: int,
) -> Indices:
    """Return k distinct column (or row) indices of A, ascending.

    Columns and rows draw from streams of their own, so the columns are the same with and without rows.

    Parameters
    ----------
    selector : Selector
        ``qdeim``: pivoted QR of V_kᵀ (Drmač and Gugercin 2016, Q-DEIM; Sorensen and Embree 2016 for CUR).
        ``cpqr``: QR with column pivoting of A itself (LAPACK geqp3).
        ``leverage``: sampling by leverage scores, p_j = Σ_{i≤k} V_ji²/k (Mahoney and Drineas 2009).
        ``linear_time``: sampling by squared norms (Drineas, Kannan and Mahoney 2006, LinearTimeCUR).
        Both samplings draw without replacement, so that no rank is wasted on an index twice.
    rank : int
        k, 1 ≤ k ≤ min(m, n).
    axis : {"columns", "rows"}
        What to choose.
    matrix : Tensor [m, n]
        A; float64 or float32, finite.
    decomposition : Decomposition or None
        Of A; needed by ``qdeim`` and ``leverage``.
    seed : int
        ≥ 0; the chance in the samplings.

    Returns
    -------
    tuple of int
        k distinct indices, ascending, each in [0, n) for columns or in [0, m) for rows.
    """
    if selector in SPECTRAL:
        assert decomposition is not None
        left, right = decomposition.vectors(matrix, rank)  # [m, k], [k, n]
        basis = right if axis == "columns" else left.mT  # [k, n or m]
    else:
        basis = matrix if axis == "columns" else matrix.mT
    if selector in ("qdeim", "cpqr"):
        chosen = _pivots(basis, rank)
    else:
        chosen = _sample(_energies(basis), rank, np.random.default_rng((seed, axis == "rows")))
    return tuple(sorted(chosen.tolist()))


def _pivots(basis: torch.Tensor, rank: int) -> npt.NDArray[Any]:
    # The pivots of a QR are a permutation: distinct even where the matrix is rank-deficient or zero.
    _, pivots = scipy.linalg.qr(basis.cpu().numpy(), mode="r", pivoting=True, check_finite=False)
    return np.asarray(pivots[:rank])


def _energies(basis: torch.Tensor) -> npt.NDArray[np.float64]:
    norms = torch.linalg.vector_norm(basis, dim=0, dtype=torch.float64)  # [n]
    return np.asarray(norms.square().cpu().numpy())


def _sample(energies: npt.NDArray[np.float64], rank: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    # A race of exponential clocks: the first k to ring are a draw without replacement with these weights
    # (Efraimidis and Spirakis 2006). Clocks of weight zero never ring; they come last, in index order.
    with np.errstate(divide="ignore", over="ignore"):
        times = rng.standard_exponential(energies.size) / energies
    return np.argsort(times, kind="stable")[:rank]
