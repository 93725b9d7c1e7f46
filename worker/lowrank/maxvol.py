"""Rows of a matrix that give all others with small coefficients: pivots, and swaps until a bound holds."""

from typing import NamedTuple

import torch

from worker.lowrank.blas import restore_torch_threads
from worker.lowrank.pivoting import lu_pivots, qr_pivots

# Coefficients above this have lost so many digits that better pivots are chosen first.
TRUSTED = 1e6
# Swaps update the coefficients in place. They are then computed afresh, and swapped on if rounding hid one.
MAX_ROUNDS = 8


class BoundedRows(NamedTuple):
    """Chosen rows of B [m, k] and what gives the others.

    Attributes
    ----------
    rows, others : Tensor [k] and [m - k], int64
        The chosen rows and all others, each ascending.
    coefficients : Tensor [m - k, k], float64
        C with B[others] = C · B[rows].
    """

    rows: torch.Tensor
    others: torch.Tensor
    coefficients: torch.Tensor


def bounded_rows(basis: torch.Tensor, bound: float) -> BoundedRows:
    """Choose k rows of B so that no coefficient of the others exceeds a bound in absolute value.

    The pivots of LU come first. As long as a coefficient c of row i by pivot j is above the bound, these two
    change places, which multiplies |det B[rows]| by |c|; so it ends. The rows found have locally maximal
    volume (Knuth 1985; Goreinov et al. 2010, How to find a good submatrix); Gu and Eisenstat (1996) bound the
    same coefficients in their strong rank-revealing QR. Where LU's growth has cost the digits, QR with column
    pivoting comes first.

    Parameters
    ----------
    basis : Tensor [m, k]
        B, orthonormal columns, m ≥ k ≥ 1; float64.
    bound : float
        More than 1.

    Returns
    -------
    BoundedRows
        On the device of B.
    """
    rank = basis.shape[1]
    if rank == len(basis):
        every = torch.arange(rank, device=basis.device)
        return BoundedRows(every, every[:0], basis[:0])
    found = _solved(basis, torch.tensor(lu_pivots(basis), device=basis.device))
    if not float(found.coefficients.abs().max()) <= TRUSTED:
        found = _solved(basis, torch.tensor(qr_pivots(basis, rank), device=basis.device))
    for _ in range(MAX_ROUNDS):
        swapped = _swap(found, bound)
        if swapped is None:
            break
        found = _solved(basis, swapped)
    return found


def _solved(basis: torch.Tensor, chosen: torch.Tensor) -> BoundedRows:
    rows = chosen.sort().values
    is_other = torch.ones(len(basis), dtype=torch.bool, device=basis.device)
    is_other[rows] = False
    others = is_other.nonzero()[:, 0]
    with restore_torch_threads():
        coefficients: torch.Tensor = torch.linalg.solve(basis[rows], basis[others], left=False)
    return BoundedRows(rows, others, coefficients)


def _swap(found: BoundedRows, bound: float) -> torch.Tensor | None:
    """Swap the largest coefficient's row and pivot until the bound holds; None where it does already.

    The coefficients are changed in place: row i, solved for pivot j, takes its place in all other rows.
    """
    rows, others, coefficients = found.rows.clone(), found.others.clone(), found.coefficients
    changed = False
    while True:
        at = int(coefficients.abs().argmax())
        i, j = divmod(at, len(rows))
        pivot = float(coefficients[i, j])
        if not abs(pivot) > bound:
            return rows if changed else None
        changed = True
        column, row = coefficients[:, j] / pivot, coefficients[i].clone()  # [m - k], [k]
        coefficients.addr_(column, row, alpha=-1)
        coefficients[:, j] = column
        coefficients[i] = row / -pivot
        coefficients[i, j] = 1 / pivot
        other = int(others[i])
        others[i], rows[j] = rows[j].clone(), other
