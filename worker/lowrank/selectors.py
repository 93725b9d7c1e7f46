"""Which columns or rows to choose: k distinct indices, deterministic under the seed."""

from typing import Literal, get_args

import numpy as np
import torch

from worker.lowrank.decomposition import Axis, Decomposition
from worker.lowrank.osinsky import osinsky
from worker.lowrank.pivoting import lu_pivots, qr_pivots, squared_norms

# Named again in schemas/planning/forms/base.py, since lowrank imports nothing of ours but schemas.spectrum; a
# test compares them.
Selector = Literal["qdeim", "deim", "cpqr", "osinsky", "leverage", "linear_time"]
SELECTORS: tuple[Selector, ...] = get_args(Selector)
# These use singular vectors, the others the matrix only.
SPECTRAL: tuple[Selector, ...] = ("qdeim", "deim", "osinsky", "leverage")

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

    Columns and rows are drawn from separate streams, so the columns are the same with and without rows.

    Parameters
    ----------
    selector : Selector
        ``qdeim``: pivoted QR of V_kᵀ (Drmač and Gugercin 2016, Q-DEIM; Sorensen and Embree 2016 for CUR).
        ``deim``: pivoted LU of V_k, which is DEIM (Sorensen and Embree 2016).
        ``cpqr``: QR with column pivoting of A itself (Businger and Golub 1965).
        ``osinsky``: error at most √(k + 1) times the best possible one, always (Osinsky 2023).
        ``leverage``: sampling by leverage scores, p_j = Σ_{i≤k} V_ji²/k (Mahoney and Drineas 2009).
        ``linear_time``: sampling by squared norms (Drineas, Kannan and Mahoney 2006, LinearTimeCUR).
        Both samplings draw without replacement, so that no index is chosen twice.
    rank : int
        k, 1 ≤ k ≤ min(m, n).
    axis : {"columns", "rows"}
        Which of the two to choose.
    matrix : Tensor [m, n]
        A; float64 or float32, finite.
    decomposition : Decomposition or None
        Of A, or of A·S; needed by all but ``cpqr`` and ``linear_time``.
    seed : int
        ≥ 0; of the samplings.

    Returns
    -------
    tuple of int
        k distinct indices, ascending, each in [0, n) for columns or in [0, m) for rows.
    """
    vectors = matrix.mT if axis == "columns" else matrix  # as rows: [n, m], or [m, n]
    basis = vectors
    if selector in SPECTRAL:
        assert decomposition is not None
        basis = decomposition.vectors(matrix, rank, axis=axis)  # [n, k], or [m, k]
    if selector == "deim":
        chosen = lu_pivots(basis)
    elif selector == "osinsky":
        chosen = osinsky(vectors, basis)
    elif selector in ("qdeim", "cpqr"):
        chosen = qr_pivots(basis, rank)
    else:
        chosen = _sample(squared_norms(basis), rank, np.random.default_rng((seed, axis == "rows")))
    return tuple(sorted(chosen))


def _sample(energies: torch.Tensor, rank: int, rng: np.random.Generator) -> list[int]:
    # Exponential arrival times: the first k to arrive are a draw without replacement with these weights
    # (Efraimidis and Spirakis 2006). Those of weight zero never arrive; they come last, in index order.
    with np.errstate(divide="ignore", over="ignore"):
        times = rng.standard_exponential(len(energies)) / energies.cpu().numpy()
    chosen: list[int] = np.argsort(times, kind="stable")[:rank].tolist()
    return chosen
