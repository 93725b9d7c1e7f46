"""The truncated SVD as k of the product's rows and the coefficients that give the others from them."""

from dataclasses import dataclass, replace

import torch

from worker.lowrank.blas import product, restore_torch_threads
from worker.lowrank.candidate import Candidate, DecomposedWeight, OutOfRangeError
from worker.lowrank.lapack import converging, thin_qr
from worker.lowrank.maxvol import BoundedRows, bounded_rows
from worker.lowrank.scale import times_power
from worker.lowrank.svd import SVDMethod
from worker.lowrank.truncation import NEGLIGIBLE_ROUNDING, cast_factors

# No coefficient is above this in absolute value. Few swaps are needed for it, so a larger one saves nothing.
BOUND = 2.0
# Of the mean energy that rounding adds to a row: what a direction of the rows must exceed to be fitted to.
RIDGE = 1e-3


@dataclass(frozen=True)
class PivotMethod:
    """Ŵ of :class:`worker.lowrank.SVDMethod` as rows and coefficients; a ``Method``.

    Of a matrix of rank k, k independent rows give all others, so k(m + n - k) numbers and k indices say the
    same as two factors of k(m + n) numbers (Zhao et al. 2025, PIFA: Pivoting factorization). No coefficient
    exceeds 2 in absolute value, so that the rounding of the rows is not blown up. Where it is visible all the
    same, the coefficients are fitted to the rows as they are stored.
    """

    def candidate(self, decomposed: DecomposedWeight, rank: int) -> Candidate:
        """Return ``(rows [k, n], coefficients [m - k, k], indices [k])``; see the protocol ``Method``."""
        found = SVDMethod().candidate(replace(decomposed, dtype=None), rank)
        right, left = found.factors  # [k, n], [m, k]
        exponent = decomposed.scaled.exponent
        left, right = times_power(left, -exponent // 2), times_power(right, -exponent // 2)
        chosen = _bounded_rows(left)
        rows = product(left[chosen.rows], right)  # [k, n], scaled
        dtype = decomposed.dtype or rows.dtype
        cast = cast_factors((times_power(rows, exponent),), dtype)
        if cast is None:
            raise OutOfRangeError
        candidate = _measured(decomposed, cast[0], chosen.coefficients, chosen, found)
        visible = torch.finfo(dtype).eps > NEGLIGIBLE_ROUNDING * decomposed.decomposition.optimal_error(rank)
        if dtype == rows.dtype or not visible:
            return candidate
        fitted = _fit(decomposed, rows, times_power(cast[0].to(torch.float64), -exponent), chosen)
        if not bool((fitted.abs() <= BOUND).all()):
            return candidate
        other = _measured(decomposed, cast[0], fitted, chosen, found)
        return min(candidate, other, key=lambda one: one.objective.relative)


def _bounded_rows(left: torch.Tensor) -> BoundedRows:
    basis, _ = thin_qr(left.to(torch.float64))  # [m, k]
    with converging(left.device):
        return bounded_rows(basis, BOUND)


def _fit(
    decomposed: DecomposedWeight, rows: torch.Tensor, stored: torch.Tensor, chosen: BoundedRows
) -> torch.Tensor:
    """Return the coefficients [m - k, k] that give the other rows of Ŵ best from the rows as stored.

    C + C·E Sᵀ(S Sᵀ + λI)⁻¹ for rows R = S + E [k, n], stored as S; with a Gram matrix G, E G Sᵀ and S G Sᵀ.
    The ridge λ keeps directions out that rounding alone makes up.
    """
    errors = rows.to(torch.float64) - stored
    weighted, weighted_errors = stored, errors
    if decomposed.weighting is not None:
        weighting = decomposed.weighting
        weighted, weighted_errors = weighting.times_gram(stored), weighting.times_gram(errors)
    core = product(stored, weighted.mT)  # [k, k]
    core.diagonal().add_(RIDGE * float((weighted_errors * errors).sum().clamp_min(0)) / len(rows))
    with restore_torch_threads():
        change, failed = torch.linalg.solve_ex(core, product(weighted_errors, stored.mT), left=False)
    if int(failed):
        return chosen.coefficients
    return chosen.coefficients + product(chosen.coefficients, change)


def _measured(
    decomposed: DecomposedWeight,
    rows: torch.Tensor,
    exact: torch.Tensor,
    chosen: BoundedRows,
    found: Candidate,
) -> Candidate:
    """Cast coefficients to the dtype of the rows, and measure both as stored.

    The product is a chain: the chosen rows are those of a unit matrix times themselves.
    """
    coefficients = exact.to(rows.dtype).contiguous()
    unit = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    pair = rows, join_rows(unit, coefficients, chosen.rows)  # [k, n], [m, k]
    return Candidate(
        len(rows),
        (rows, coefficients, chosen.rows.to(torch.int32)),
        decomposed.residual(pair),
        found.accurate,
        rows=tuple(chosen.rows.tolist()),
        weighted=decomposed.weighted_error(pair),
    )


def join_rows(rows: torch.Tensor, others: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the matrix [m, n] whose rows at some indices are given, and the others too, in their order.

    Parameters
    ----------
    rows : Tensor [k, n]
        The rows at the indices.
    others : Tensor [m - k, n]
        All others; of the same dtype and device.
    indices : Tensor [k], int32 or int64
        Ascending, each in [0, m).

    Returns
    -------
    Tensor [m, n]
        In their dtype.
    """
    whole = rows.new_empty(len(rows) + len(others), rows.shape[1])
    is_other = torch.ones(len(whole), dtype=torch.bool, device=rows.device)
    is_other[indices.long()] = False
    whole[~is_other], whole[is_other] = rows, others
    return whole
