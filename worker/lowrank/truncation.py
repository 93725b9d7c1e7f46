"""Truncated factors in the dtype they are stored in, and what the cast to it costs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from worker.lowrank.blas import product, self_product
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.error import Residual, measure
from worker.lowrank.scale import ScaledWeight
from worker.lowrank.weighting import WeightedError, Weighting

Factors = tuple[torch.Tensor, ...]

# Below this share of ‖A‖_F² a difference of sums of that size has lost digits that the error needs.
LEAST_DIFFERENCE = {torch.float32: 2e-2, torch.float64: 1e-8}
# Rows rounded to a precision below this share of the remaining error still count as orthogonal: the cost is
# the square of it, and the error is measured in any case.
NEGLIGIBLE_ROUNDING = 0.03
# A cast that raises the error by more than this factor calls for smaller factors.
VISIBLE_ROUNDING = 1.02


@dataclass(frozen=True)
class Truncation:
    """W ≈ left · right, as stored, input side first, its error, and the weighted one where it is known."""

    factors: Factors
    residual: Residual
    weighted: WeightedError | None = None


def truncate(
    scaled: ScaledWeight, decomposition: Decomposition, rank: int, *, dtype: torch.dtype
) -> Truncation | None:
    """Return the best approximation of rank k in factors of a storage dtype, the values split evenly.

    The factor that holds singular vectors is rounded first; the other is the least-squares fit of A to it as
    it is stored, which corrects for its rounding.

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
    Truncation or None
        None where `dtype` cannot hold the factors.
    """
    by_columns = decomposition.axis == "columns"
    basis = decomposition.basis[:rank].to(scaled.matrix.device)  # [k, s]
    working = torch.promote_types(scaled.matrix.dtype, basis.dtype)
    matrix = (scaled.matrix if by_columns else scaled.matrix.mT).to(working)  # [l, s], l the other side
    root = math.ldexp(1.0, scaled.exponent // 2)
    lengths = _lengths(matrix, basis) if decomposition.calibrated else decomposition.singular_values[:rank]
    cast = cast_factors((basis * (lengths.to(basis).sqrt() * root)[:, None],), dtype)
    if cast is None:
        return None
    stored_basis = without_subnormal_rows(cast[0])  # [k, s]
    right = stored_basis.to(working) / root  # R [k, s]
    projected = product(matrix, right.mT)  # ARᵀ [l, k]
    right_gram = self_product(right.mT, working)  # RRᵀ [k, k]
    rounding_is_visible = (
        torch.finfo(dtype).eps > NEGLIGIBLE_ROUNDING * decomposition.optimal_error(rank) and dtype != working
    )
    if rounding_is_visible:
        coefficients = fit_to(projected, right_gram)
    else:
        coefficients = projected / positive(right_gram.diagonal())
    cast = cast_factors((coefficients * root,), dtype)
    if cast is None:
        return None
    stored_fit = cast[0]  # [l, k]
    left = stored_fit.to(working) / root  # L [l, k]
    error = scaled.energy - 2 * _inner(left, projected) + _inner(self_product(left, working), right_gram)
    residual = Residual(error, scaled.energy, scaled.exponent)
    factors = (
        (stored_basis, stored_fit)
        if by_columns
        else (stored_fit.mT.contiguous(), stored_basis.mT.contiguous())
    )
    if residual.scaled_error < LEAST_DIFFERENCE[working] * scaled.energy:
        residual = measure(scaled.weight, factors, scaled.exponent)
    return Truncation(factors, residual)


def truncate_weighted(
    scaled: ScaledWeight, decomposition: Decomposition, rank: int, *, dtype: torch.dtype, weighting: Weighting
) -> Truncation | None:
    """Return the best approximation of rank k for an error that is weighted by F, and by G or not.

    The left factor T⁻ᵀU_k, F = TTᵀ, is rounded first; the right one is the least-squares fit of TᵀA to the
    left one as it is stored. For given left factors that fit is the best one for any G.

    Parameters
    ----------
    scaled : ScaledWeight
        W [m, n], and A.
    decomposition : Decomposition
        Of TᵀAS, of at least k vectors, of axis "rows".
    rank : int
        k ≥ 1.
    dtype : torch.dtype
        Of the stored factors.
    weighting : Weighting
        F, and G or None.

    Returns
    -------
    Truncation or None
        None where `dtype` cannot hold the factors.

    Raises
    ------
    LinAlgError
        Torch's or numpy's, if F has no root.
    """
    outputs = weighting.outputs
    assert outputs is not None
    root = math.ldexp(1.0, scaled.exponent // 2)
    columns, balance = _solved_columns(scaled, decomposition, rank, weighting)
    cast = cast_factors((columns.mT * (balance * root)[:, None],), dtype)
    if cast is None:
        return None
    stored_columns = without_subnormal_rows(cast[0])  # [k, m]
    left = outputs.weigh(stored_columns.mT.to(torch.float64) / root)  # TᵀL [m, k]
    projected = product(outputs.weigh(scaled.matrix).mT, left)  # AᵀTTᵀL [n, k]
    cast = cast_factors((fit_to(projected, self_product(left, torch.float64)) * root,), dtype)
    if cast is None:
        return None
    factors = (cast[0].mT.contiguous(), stored_columns.mT.contiguous())
    return Truncation(factors, measure(scaled.weight, factors, scaled.exponent))


def _solved_columns(
    scaled: ScaledWeight, decomposition: Decomposition, rank: int, weighting: Weighting
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T⁻ᵀU [m, k], and the factors [k] that make its columns as long as the rows of UᵀTᵀA."""
    assert weighting.outputs is not None
    basis = decomposition.basis[:rank].to(scaled.matrix.device)  # [k, m]
    columns = weighting.outputs.unweigh(basis.mT)
    rows = product(basis, weighting.outputs.weigh(scaled.matrix))  # [k, n]
    lengths = torch.linalg.vector_norm(rows, dim=1)
    return columns, (lengths / positive(torch.linalg.vector_norm(columns, dim=0))).sqrt()


def _lengths(matrix: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = torch.linalg.vector_norm(product(matrix, basis.to(matrix.dtype).mT), dim=0)
    return lengths  # [k]


def without_subnormal_rows(rows: torch.Tensor) -> torch.Tensor:
    # A row below the normal range has lost its direction, and a fit to it could be of any size.
    largest = rows.abs().amax(dim=1, keepdim=True)  # [k, 1]
    return torch.where(largest >= torch.finfo(rows.dtype).tiny, rows, 0)


def _inner(left: torch.Tensor, right: torch.Tensor) -> float:
    rows: torch.Tensor = torch.linalg.vecdot(left, right)
    return float(rows.to(torch.float64).sum())


def positive(sizes: torch.Tensor) -> torch.Tensor:
    return torch.where(sizes > 0, sizes, 1.0)


def fit_to(projected: torch.Tensor, right_gram: torch.Tensor) -> torch.Tensor:
    """Return the L [l, k] of least ‖A - LR‖_F, given ARᵀ and RRᵀ; R's rows are nearly orthogonal."""
    lengths = positive(right_gram.diagonal().sqrt())  # [k]
    correlation = right_gram / lengths / lengths[:, None]
    correlation.diagonal().clamp_(min=1.0)  # Rows of zeros alone: their coefficients are zero.
    lower, failed = torch.linalg.cholesky_ex(correlation)
    if int(failed):
        return projected / lengths.square()
    return product(projected / lengths, torch.cholesky_inverse(lower)) / lengths


def fits_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor can be cast: no overflow, and not all of it below the normal range.

    Parameters
    ----------
    tensor : Tensor of any shape
        Real and floating, of at least one element; infinite and NaN entries never can.
    dtype : torch.dtype
        A real floating dtype.

    Returns
    -------
    bool
        Always True for finite entries where the dtype is the tensor's own.
    """
    low, high = (float(extreme) for extreme in torch.aminmax(tensor))
    largest = max(-low, high)
    limits = torch.finfo(dtype)
    return largest <= limits.max and (largest >= limits.tiny or largest == 0 or tensor.dtype == dtype)


def cast_factors(factors: Factors, dtype: torch.dtype) -> Factors | None:
    """Return the factors cast to a dtype.

    Parameters
    ----------
    factors : tuple of Tensor, each of any shape
        Real and floating.
    dtype : torch.dtype
        A real floating dtype.

    Returns
    -------
    tuple of Tensor, or None
        The same shapes in `dtype`, contiguous; None where one of them does not fit (see :func:`fits_dtype`).
    """
    if not all(fits_dtype(factor, dtype) for factor in factors):
        return None
    return tuple(factor.to(dtype).contiguous() for factor in factors)


def best_rounded(
    fit: Callable[[float], Factors], dtype: torch.dtype, measured: Callable[[Factors], Residual]
) -> tuple[Factors, Residual] | None:
    """Return the stored factors of least measured error, or None where `dtype` can hold none.

    Nearly dependent columns make the fitted factor large, and rounding large numbers to a narrow dtype may
    cost more than those columns gain. Cutoffs above 0 are tried only where rounding is visible.

    Parameters
    ----------
    fit : callable
        From a cutoff in [0, 1) to the factors of one weight [m, n], input side first: ``(right [k, n],
        left [m, k])`` or ``(r [k, n], u [k, k], c [m, k])``. Directions weaker than
        `cutoff` times the strongest are left out.
    dtype : torch.dtype
        Of the stored factors; real and floating.
    measured : callable
        From factors to their error.

    Returns
    -------
    factors, residual
        The factors of the shapes that `fit` gives, contiguous in `dtype`, and their measured error; None
        where `dtype` can hold the factors of no cutoff.
    """
    exact = fit(0.0)
    best = _with_error(cast_factors(exact, dtype), measured)
    if best is not None and best[1].relative <= VISIBLE_ROUNDING * measured(exact).relative:
        return best
    eps = torch.finfo(dtype).eps
    for cutoff in (eps, math.sqrt(eps), eps**0.25):
        truncated = _with_error(cast_factors(fit(cutoff), dtype), measured)
        if truncated is not None and (best is None or truncated[1].relative < best[1].relative):
            best = truncated
    return best


def _with_error(
    factors: Factors | None, measured: Callable[[Factors], Residual]
) -> tuple[Factors, Residual] | None:
    return None if factors is None else (factors, measured(factors))
