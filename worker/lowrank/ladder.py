"""Decompositions of a weight, each made more carefully than the one before."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from worker.lowrank.blas import gram
from worker.lowrank.decomposition import Decomposition, Memo
from worker.lowrank.eigen import leading_pairs, oriented
from worker.lowrank.lapack import NotConvergedError, failures, full_svd, triangle
from worker.lowrank.scale import squared_norm

# From this aspect ratio on, a QR first is cheaper than a direct SVD.
QR_ASPECT = 1.6
# Up to this length of the short side, the direct SVD in float64 takes milliseconds and nothing else is tried.
SMALL = 128
# Rounding of AᵀA and its eigenvalues moves up to this many eps of Σσ²; 15 were seen, mostly it is under 1.
GRAM_ROUNDING = 16


def decompositions(
    matrix: torch.Tensor, *, extent: int, whole: bool, memo: Memo | None = None
) -> Iterator[Decomposition]:
    """Yield decompositions of A, each made more carefully than the one before.

    The eigenpairs of the smaller Gram matrix AᵀA or AAᵀ, in float32 and then in float64: a small part of the
    work of an SVD, but of digits it has half, so that a tail under about 1e-1 of ‖A‖_F is left to float64 and
    one under 4e-6 to the SVD itself in float64: by divide and conquer (LAPACK gesdd), then by QR iteration
    (gesvd), a long matrix first reduced by QR (Chan 1982). A step that does not converge is passed over, and
    the caller goes on until one is good enough, or none is left.

    Parameters
    ----------
    matrix : Tensor [m, n]
        A, scaled to order one; float32 or float64. Its device is where the work is done.
    extent : int
        How many singular vectors, 1 ≤ r ≤ min(m, n).
    whole : bool
        Whether all singular values are wanted, and not the largest r alone.
    memo : Memo or None
        What is known of A already: those steps are not taken again. What is computed is put there.

    Yields
    ------
    Decomposition
        At most four, all of finite singular values; none where nothing converged.
    """
    yield from climb(matrix, _steps(matrix), extent=extent, whole=whole, memo=memo)


def directly(matrix: torch.Tensor, *, extent: int) -> Iterator[Decomposition]:
    """Yield the last two of :func:`decompositions`, which need no Gram matrix."""
    yield from climb(matrix, _direct_steps(), extent=extent, whole=True, memo=None)


def resolved(matrix: torch.Tensor, rank: int) -> Decomposition:
    """Return the first of :func:`decompositions` that resolves this rank.

    Raises
    ------
    NotConvergedError
        An ArithmeticError: if none does.
    """
    for decomposition in decompositions(matrix, extent=rank, whole=False):
        if decomposition.resolves(rank):
            return decomposition
    raise NotConvergedError


@dataclass(frozen=True)
class Wanted:
    """How many singular vectors and whether all values of A are wanted, and ‖A‖_F²."""

    vectors: int
    all_values: bool
    energy: float


Step = Callable[[torch.Tensor, Wanted], Decomposition]


def climb(
    matrix: torch.Tensor, steps: Iterable[Step], *, extent: int, whole: bool, memo: Memo | None
) -> Iterator[Decomposition]:
    """Yield what each step makes of A; one that fails, or whose values are not finite, is passed over."""
    energy = None
    for number, step in enumerate(steps):
        found = memo.get(number) if memo is not None else None
        if found is None:
            energy = squared_norm(matrix) if energy is None else energy
            if not energy < math.inf:  # Nor NaN: LAPACK may not come back from it.
                return
            try:
                found = step(matrix, Wanted(extent, whole, energy))
            except failures(matrix.device):
                continue
            if not bool(torch.isfinite(found.singular_values).all()):
                continue
            if memo is not None:
                memo[number] = found
        yield found
        del found  # The next step needs the room.


def _direct_steps() -> list[Step]:
    by_division: Step = partial(_by_svd, iterate=False)
    by_iteration: Step = partial(_by_svd, iterate=True)
    return [by_division, by_iteration]


def _steps(matrix: torch.Tensor) -> list[Step]:
    if min(matrix.shape) <= SMALL:
        return _direct_steps()
    in_float64: Step = partial(_by_gram, dtype=torch.float64)
    in_float32: Step = partial(_by_gram, dtype=torch.float32)
    by_gram = [in_float64] if matrix.dtype == torch.float64 else [in_float32, in_float64]
    return [*by_gram, *_direct_steps()]


def _by_gram(matrix: torch.Tensor, wanted: Wanted, *, dtype: torch.dtype) -> Decomposition:
    by_columns = matrix.shape[0] >= matrix.shape[1]
    products = gram(matrix if by_columns else matrix.mT, dtype)  # [p, p]
    values, basis = leading_pairs(products, wanted.vectors, whole=wanted.all_values)  # [p or r], [r, p]
    squares = values.clamp_min(0)
    return Decomposition(
        singular_values=squares.sqrt(),
        basis=basis,
        side="columns" if by_columns else "rows",
        noise=GRAM_ROUNDING * torch.finfo(dtype).eps,
        rest=max(wanted.energy - float(squares.sum()), 0.0) if len(squares) < min(matrix.shape) else 0.0,
    )


def _by_svd(matrix: torch.Tensor, wanted: Wanted, *, iterate: bool) -> Decomposition:
    by_columns = matrix.shape[0] >= matrix.shape[1]
    tall = (matrix if by_columns else matrix.mT).to(torch.float64)
    if tall.shape[0] >= QR_ASPECT * tall.shape[1]:
        tall = triangle(tall)  # [p, p]
    _, s, vh = full_svd(tall, iterate=iterate)
    return Decomposition(
        singular_values=s.to("cpu", torch.float64),
        basis=oriented(vh[: wanted.vectors].contiguous()),
        side="columns" if by_columns else "rows",
        noise=0.0,
    )
