"""A cascade of solvers for the singular value decomposition, from cheap to accurate."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from worker.lowrank.blas import self_product
from worker.lowrank.decomposition import Decomposition, SolverCache
from worker.lowrank.lapack import (
    NotConvergedError,
    converging,
    fix_signs,
    full_svd,
    leading_eigenpairs,
    triangle,
)
from worker.lowrank.scale import squared_norm

# From this aspect ratio on, a QR first is cheaper than a direct SVD.
QR_ASPECT = 1.6
# Up to this length of the short side, the SVD in float64 takes milliseconds and nothing else is tried.
SMALL = 128
# Rounding of AᵀA and its eigenvalues moves up to this many eps of Σσ²; 15 were seen, mostly it is under 1.
GRAM_ROUNDING = 16


def solve(
    matrix: torch.Tensor, *, num_vectors: int, all_values: bool, cache: SolverCache | None = None
) -> Iterator[Decomposition]:
    """Yield decompositions of A, each more accurate than the one before.

    The first two are eigenpairs of the smaller Gram matrix AᵀA or AAᵀ, in float32 and in float64. They take a
    small part of the work of an SVD, but squaring halves the digits: a tail under about 1e-1 of ‖A‖_F needs
    float64, and one under 4e-6 needs the last two, which are the SVD in float64 by divide and conquer (LAPACK
    gesdd) and by QR iteration (gesvd); a long matrix is first reduced by QR (Chan 1982). A solver that does
    not converge is skipped. The caller stops at the first decomposition that is accurate enough.

    Parameters
    ----------
    matrix : Tensor [m, n]
        A, scaled to order one; float32 or float64. The work is done on its device.
    num_vectors : int
        The number of singular vectors, 1 ≤ r ≤ min(m, n).
    all_values : bool
        Whether all singular values are wanted, and not the largest r only.
    cache : SolverCache or None
        Decompositions of A that are known already: those solvers do not run. New results are put there.

    Yields
    ------
    Decomposition
        At most four, all with finite singular values; none where nothing converged.
    """
    yield from run_cascade(
        matrix, _solvers(matrix), num_vectors=num_vectors, all_values=all_values, cache=cache
    )


def solve_exactly(matrix: torch.Tensor, *, num_vectors: int) -> Iterator[Decomposition]:
    """Yield the last two of :func:`solve`, which form no Gram matrix."""
    yield from run_cascade(matrix, _direct_solvers(), num_vectors=num_vectors, all_values=True, cache=None)


def solve_for(matrix: torch.Tensor, rank: int) -> Decomposition:
    """Return the first of :func:`solve` that is accurate enough for this rank.

    Raises
    ------
    NotConvergedError
        An ArithmeticError: if none is.
    """
    for decomposition in solve(matrix, num_vectors=rank, all_values=False):
        if decomposition.is_accurate_for(rank):
            return decomposition
    raise NotConvergedError


@dataclass(frozen=True)
class Wanted:
    """The number of singular vectors, whether all singular values are wanted, and ‖A‖_F²."""

    num_vectors: int
    all_values: bool
    energy: float


Solver = Callable[[torch.Tensor, Wanted], Decomposition]


def run_cascade(
    matrix: torch.Tensor,
    solvers: Iterable[Solver],
    *,
    num_vectors: int,
    all_values: bool,
    cache: SolverCache | None,
    first: int = 0,
) -> Iterator[Decomposition]:
    """Yield the result of each solver for A; one that fails, or finds values that are not finite, is skipped.

    Parameters and yields as for :func:`solve`; `solvers` from cheap to accurate, `first` the number of the
    first of them in the cache.
    """
    energy = None
    for number, solver in enumerate(solvers, first):
        found = cache.get(number) if cache is not None else None
        if found is None:
            energy = squared_norm(matrix) if energy is None else energy
            if not energy < math.inf:  # Nor NaN: LAPACK may never return.
                return
            try:
                with converging(matrix.device):
                    found = solver(matrix, Wanted(num_vectors, all_values, energy))
            except NotConvergedError:
                continue
            if not bool(torch.isfinite(found.singular_values).all()):
                continue
            if cache is not None:
                cache[number] = found
        yield found
        del found  # The next solver needs the memory.


def _direct_solvers() -> list[Solver]:
    by_division: Solver = partial(_by_svd, iterate=False)
    by_iteration: Solver = partial(_by_svd, iterate=True)
    return [by_division, by_iteration]


def _solvers(matrix: torch.Tensor) -> list[Solver]:
    if min(matrix.shape) <= SMALL:
        return _direct_solvers()
    in_float64: Solver = partial(_by_gram, dtype=torch.float64)
    in_float32: Solver = partial(_by_gram, dtype=torch.float32)
    by_gram = [in_float64] if matrix.dtype == torch.float64 else [in_float32, in_float64]
    return [*by_gram, *_direct_solvers()]


def _by_gram(matrix: torch.Tensor, wanted: Wanted, *, dtype: torch.dtype) -> Decomposition:
    by_columns = matrix.shape[0] >= matrix.shape[1]
    products = self_product(matrix if by_columns else matrix.mT, dtype)  # [p, p]
    values, basis = leading_eigenpairs(  # [p or r], [r, p]
        products, wanted.num_vectors, all_values=wanted.all_values
    )
    squares = values.clamp_min(0)
    complete = len(squares) == min(matrix.shape)
    return Decomposition(
        singular_values=squares.sqrt(),
        basis=basis,
        axis="columns" if by_columns else "rows",
        roundoff=GRAM_ROUNDING * torch.finfo(dtype).eps,
        tail_energy=0.0 if complete else max(wanted.energy - float(squares.sum()), 0.0),
    )


def _by_svd(matrix: torch.Tensor, wanted: Wanted, *, iterate: bool) -> Decomposition:
    by_columns = matrix.shape[0] >= matrix.shape[1]
    tall = (matrix if by_columns else matrix.mT).to(torch.float64)
    if tall.shape[0] >= QR_ASPECT * tall.shape[1]:
        tall = triangle(tall)  # [p, p]
    _, s, vh = full_svd(tall, iterate=iterate)
    return Decomposition(
        singular_values=s.to("cpu", torch.float64),
        basis=fix_signs(vh[: wanted.num_vectors].contiguous()),
        axis="columns" if by_columns else "rows",
        roundoff=0.0,
    )
