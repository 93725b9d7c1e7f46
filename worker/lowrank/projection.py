"""Factors of a truncated decomposition, one fitted to the other as stored, and their measured error."""

import math
from dataclasses import dataclass

import torch

from worker.lowrank.blas import gram, product
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.residual import Residual, measure
from worker.lowrank.scale import ScaledWeight
from worker.lowrank.storage import Factors, stored

# Below this part of ‖A‖_F² a difference of sums of that size has lost digits that the error is to have.
LEAST_DIFFERENCE = {torch.float32: 2e-2, torch.float64: 1e-8}
# Rounded to a precision under this part of the error left, the rows count as orthogonal still: what that
# costs is the square of it, and the error is measured in any case.
ROUNDING_SEEN = 0.03


@dataclass(frozen=True)
class Projection:
    """W ≈ left · right, as stored, input side first, and its error."""

    factors: Factors
    residual: Residual


def project(
    scaled: ScaledWeight, decomposition: Decomposition, rank: int, *, dtype: torch.dtype
) -> Projection | None:
    """Return the best approximation of rank k in factors of a storage dtype, the values split evenly.

    The factor that holds singular vectors is rounded first; the other is the least-squares fit of A to it as
    it is stored, which makes up for its rounding.

    Parameters
    ----------
    scaled : ScaledWeight
        W [m, n], and A.
    decomposition : Decomposition
        Of A, of at least k vectors.
    rank : int
        k ≥ 1.
    dtype : torch.dtype
        Of the stored factors.

    Returns
    -------
    Projection or None
        None where `dtype` cannot hold the factors.
    """
    by_columns = decomposition.side == "columns"
    basis = decomposition.basis[:rank].to(scaled.matrix.device)  # [k, s]
    working = torch.promote_types(scaled.matrix.dtype, basis.dtype)
    matrix = (scaled.matrix if by_columns else scaled.matrix.mT).to(working)  # [l, s], l the other side
    root = math.ldexp(1.0, scaled.exponent // 2)
    lengths = _lengths(matrix, basis) if decomposition.weighted else decomposition.singular_values[:rank]
    kept = stored((basis * (lengths.to(basis).sqrt() * root)[:, None],), dtype)
    if kept is None:
        return None
    kept = (_whole(kept[0]),)
    held = kept[0].to(working) / root  # [k, s]
    image = product(matrix, held.mT)  # [l, k]
    core = gram(held.mT, working)  # [k, k]
    seen = torch.finfo(dtype).eps > ROUNDING_SEEN * decomposition.tail(rank) and dtype != working
    other = _fit(image, core) if seen else image / _positive(core.diagonal())
    fitted = stored((other * root,), dtype)
    if fitted is None:
        return None
    other = fitted[0].to(working) / root  # [l, k]
    error = scaled.energy - 2 * _inner(other, image) + _inner(gram(other, working), core)
    residual = Residual(error, scaled.energy, scaled.exponent)
    factors = (kept[0], fitted[0]) if by_columns else (fitted[0].mT.contiguous(), kept[0].mT.contiguous())
    if residual.scaled_error < LEAST_DIFFERENCE[working] * scaled.energy:
        residual = measure(scaled.weight, factors, scaled.exponent)
    return Projection(factors, residual)


def _lengths(matrix: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = torch.linalg.vector_norm(product(matrix, basis.to(matrix.dtype).mT), dim=0)
    return lengths  # [k]


def _whole(rows: torch.Tensor) -> torch.Tensor:
    # A row under the normal range has lost its direction, and a fit to it could be of any size.
    largest = rows.abs().amax(dim=1, keepdim=True)  # [k, 1]
    return torch.where(largest >= torch.finfo(rows.dtype).tiny, rows, 0)


def _inner(left: torch.Tensor, right: torch.Tensor) -> float:
    rows: torch.Tensor = torch.linalg.vecdot(left, right)
    return float(rows.to(torch.float64).sum())


def _positive(sizes: torch.Tensor) -> torch.Tensor:
    return torch.where(sizes > 0, sizes, 1.0)


def _fit(image: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    """Return the L [l, k] of least ‖A - LR‖_F, given ARᵀ and RRᵀ; R's rows are nearly orthogonal."""
    lengths = _positive(core.diagonal().sqrt())  # [k]
    even = core / lengths / lengths[:, None]
    even.diagonal().clamp_(min=1.0)  # Rows of zeros alone: their coefficients are zero.
    lower, failed = torch.linalg.cholesky_ex(even)
    if int(failed):
        return image / lengths.square()
    return product(image / lengths, torch.cholesky_inverse(lower)) / lengths
