"""Pivoting: the vectors that stand for all others, found by elimination as in QR and LU.

Large choices go by blocks among a few hundred candidates, so that most of the work is products of matrices
(docs/decisions/0008-blocks-not-sketches.md).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch

from worker.lowrank.blas import product, subtract_product
from worker.lowrank.lapack import thin_qr

# Multiply-adds from which QR goes by blocks: the threads of LAPACK wait for each other at every pivot.
BLOCKED_WORK = 1 << 28
# The number of vectors that a block chooses among, and the most that it chooses.
CANDIDATES = 256
BLOCK = 64
# The first FEW pivots of a block may score down to YIELDING times the best; otherwise blocks would shrink to
# one pivot.
FEW, YIELDING = 8, 0.8
# Ties count as ties in spite of rounding.
TIED = 1 - 1e-4


def qr_pivots(vectors: torch.Tensor, rank: int) -> list[int]:
    """Return the first k pivots of QR with column pivoting, the vectors being the columns.

    Each is the vector farthest from the span of those before (Businger and Golub 1965, LAPACK's geqp3). Large
    matrices go by blocks: distances only shrink, so the farthest candidate is the pivot as long as no other
    vector was farther away when the block began. The first 8 pivots of a block may have 0.89 of the largest
    distance.

    Parameters
    ----------
    vectors : Tensor [n, d]
        Rows are the vectors; float64 or float32, finite. They are not changed.
    rank : int
        k, 1 ≤ k ≤ n.

    Returns
    -------
    list of int
        k distinct indices in [0, n), in the order of their choice; distinct even where fewer than k vectors
        are independent, or all are zero.
    """
    if vectors.numel() * rank >= BLOCKED_WORK:
        return blocked_qr_pivots(vectors, rank)
    columns = vectors.cpu().numpy().T
    _, order = scipy.linalg.qr(columns, mode="r", pivoting=True, check_finite=False)
    chosen: list[int] = order[:rank].tolist()
    return chosen


def lu_pivots(vectors: torch.Tensor) -> list[int]:
    """Return the row pivots of LU with partial pivoting: the indices at which DEIM interpolates.

    DEIM takes the entry where the ones before approximate a singular vector worst, which is the pivot of
    partial pivoting (Chaturantabut and Sorensen 2010; Sorensen and Embree 2016).

    Parameters
    ----------
    vectors : Tensor [n, k]
        The columns are the singular vectors in their order, n ≥ k; float64 or float32.

    Returns
    -------
    list of int
        k distinct indices in [0, n), in the order of their choice.
    """
    _, swaps, _ = torch.linalg.lu_factor_ex(vectors)  # [k], counted from 1
    order = list(range(len(vectors)))
    for place, other in enumerate(swaps.tolist()):
        order[place], order[other - 1] = order[other - 1], order[place]
    return order[: vectors.shape[1]]


def blocked_qr_pivots(vectors: torch.Tensor, rank: int) -> list[int]:
    """Return :func:`qr_pivots` by blocks; for large matrices."""
    rest = vectors.clone(memory_format=torch.contiguous_format)  # [n, d]
    digits = torch.finfo(rest.dtype).eps ** 0.5
    left = squared_norms(rest)  # [n]
    known = left.clone()
    chosen: list[int] = []
    while len(chosen) < rank:
        pool, limit = candidates(left)
        picked = pool[_picks(products(rest[pool]), limit, digits, most=min(BLOCK, rank - len(chosen)))]  # [b]
        basis, _ = thin_qr(rest[picked].mT)  # [d, b]
        shares = product(rest, basis)  # [n, b]
        subtract_product(rest, shares, basis.mT)
        left -= squared_norms(shares)
        left[picked] = -torch.inf
        # Differences that have lost their digits are computed again.
        spent = (left < digits * known) & (left > -torch.inf)
        left[spent] = known[spent] = squared_norms(rest[spent])
        chosen += picked.tolist()
    return chosen


def _picks(gram: npt.NDArray[np.float64], limit: float, digits: float, *, most: int) -> list[int]:
    """Pivot a Gram matrix [c, c] (Cholesky) until one outside, at most `limit`, might be farther away."""
    left = gram.diagonal().copy()  # [c]
    least = digits * left.max()
    if least <= 0:
        return list(range(min(most, len(left))))
    lower = np.empty((most, len(left)))
    picked: list[int] = []
    while len(picked) < most:
        best, done = int(left.argmax()), len(picked)
        if picked and left[best] < max(least, limit * slack(done)):
            break
        row = gram[best] - combined(lower[:done, best], lower[:done])
        lower[done] = row / np.sqrt(left[best])
        left -= lower[done] ** 2
        picked.append(best)
        left[picked] = -np.inf
    return picked


def candidates(scores: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the indices of the best scores, ascending, and the best score that is not among them.

    Parameters
    ----------
    scores : Tensor [n]
        -inf for what must not be chosen; at least one is larger.

    Returns
    -------
    pool : Tensor [c]
        At most 256 indices; among equal scores the first.
    limit : float
        -inf where all that may be chosen are in the pool.
    """
    order = scores.argsort(descending=True, stable=True)
    eligible = int((scores > -torch.inf).sum())
    limit = float(scores[order[CANDIDATES]]) if eligible > CANDIDATES else -torch.inf
    return order[: min(CANDIDATES, eligible)].sort().values, limit


def slack(done: int) -> float:
    """Return the share of the limit that the next choice of a block must reach, after `done` choices."""
    return TIED if done >= FEW else YIELDING


def squared_norms(vectors: torch.Tensor) -> torch.Tensor:
    """Return the squared lengths of rows [n, d] as float64 [n], as exact as the dtype of the rows is."""
    norms: torch.Tensor = torch.linalg.vector_norm(vectors, dim=1)
    return norms.to(torch.float64).square_()


def products(vectors: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the inner products of rows [c, d] as float64 [c, c]."""
    return np.asarray(product(vectors, vectors.mT).to("cpu", torch.float64).numpy())


def combined(weights: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return Σ_t weights[t] · rows[t] [c], without BLAS, whose threads would cost more than they save."""
    return np.asarray(np.einsum("t,tc->c", weights, rows))
