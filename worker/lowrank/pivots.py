"""Pivots: which of many vectors stand for all, found by elimination as QR and LU do it."""

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch

from worker.lowrank.blas import product, subtract_product
from worker.lowrank.blocks import BLOCK, candidates, combined, products, slack, squared_norms
from worker.lowrank.lapack import thin_qr

# Multiply-adds from which QR goes by blocks: LAPACK's threads wait for each other at every single pivot.
BLOCKED_WORK = 1 << 28


def qr_pivots(vectors: torch.Tensor, rank: int) -> list[int]:
    """Return the first k pivots of QR with column pivoting, the vectors being the columns.

    Each is the vector farthest from the span of those before (Businger and Golub 1965, LAPACK's geqp3). Large
    ones go by blocks: distances only shrink, so the farthest candidate is the pivot as long as none of the
    other vectors was farther off when the block began. Where that would make a block of fewer than 8 pivots,
    they may have 0.89 of the largest distance.

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
        return blocked(vectors, rank)
    columns = vectors.cpu().numpy().T
    _, order = scipy.linalg.qr(columns, mode="r", pivoting=True, check_finite=False)
    chosen: list[int] = order[:rank].tolist()
    return chosen


def lu_pivots(vectors: torch.Tensor) -> list[int]:
    """Return the row pivots of LU with partial pivoting: the indices at which DEIM interpolates.

    DEIM takes the entry where a singular vector is told worst by the ones before it, which is the entry that
    partial pivoting brings up (Chaturantabut and Sorensen 2010; Sorensen and Embree 2016).

    Parameters
    ----------
    vectors : Tensor [n, k]
        Columns are the singular vectors in their order, n ≥ k; float64 or float32.

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


def blocked(vectors: torch.Tensor, rank: int) -> list[int]:
    """Body of :func:`qr_pivots` for large ones."""
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
        # Differences that have lost their digits are taken anew.
        spent = (left < digits * known) & (left > -torch.inf)
        left[spent] = known[spent] = squared_norms(rest[spent])
        chosen += picked.tolist()
    return chosen


def _picks(gram: npt.NDArray[np.float64], limit: float, digits: float, *, most: int) -> list[int]:
    """Pivot a Gram matrix [c, c] (Cholesky) until a vector outside might be farther off, by its `limit`."""
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
