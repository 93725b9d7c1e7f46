"""CUR: a matrix told in k of its own columns and k of its own rows."""

from dataclasses import dataclass

import torch

from worker.lowrank.blas import one_pool
from worker.lowrank.cx import take_columns
from worker.lowrank.edge import check_rank, check_seed, check_selector, finite_exponent
from worker.lowrank.ladder import resolved
from worker.lowrank.lstsq import PseudoInverse
from worker.lowrank.scale import scaled_copy, times_power, working_dtype
from worker.lowrank.selectors import SPECTRAL, Selector, select


@dataclass(frozen=True)
class CUR:
    """W ≈ c · u · r: c [m, k] and r [k, n] are exact columns and rows, u [k, k] = C⁺WR⁺; indices ascend."""

    columns: tuple[int, ...]
    rows: tuple[int, ...]
    c: torch.Tensor
    u: torch.Tensor
    r: torch.Tensor

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input side first, as in a ``torch.nn.Sequential``."""
        return self.r, self.u, self.c


@one_pool()
def cur(weight: torch.Tensor, rank: int, *, selector: Selector = "qdeim", seed: int = 0) -> CUR:
    """Return W ≈ C U R with U = C⁺WR⁺, the best U for these columns and rows in the Frobenius norm.

    The columns are those that :func:`worker.lowrank.cx` chooses under the same selector and seed, so its
    error is never under that of CX (Mahoney and Drineas 2009; Sorensen and Embree 2016).

    Parameters
    ----------
    weight : Tensor [m, n]
        Finite; float64, float32, float16 or bfloat16.
    rank : int
        1 ≤ k ≤ min(m, n).
    selector : {"qdeim", "deim", "cpqr", "osinsky", "leverage", "linear_time"}
        How columns and rows are chosen: see :func:`worker.lowrank.selectors.select`.
    seed : int
        ≥ 0; the chance in ``leverage`` and ``linear_time``.

    Returns
    -------
    CUR
        Factors in float64 for float64 input, else in float32, which holds narrower columns exactly.

    Raises
    ------
    ValueError
        If an argument is out of its range or the weight is not finite.
    ArithmeticError
        If no method found the singular vectors of the weight, where the selector needs them, or of what was
        chosen, which the fit needs.

    Examples
    --------
    >>> found = cur(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
    >>> found.columns, found.rows
    ((1, 2), (1, 2))
    """
    check_selector(selector)
    check_seed(seed)
    weight = weight.detach()
    exponent = finite_exponent(weight)
    check_rank(rank, weight)
    scaled = scaled_copy(weight, exponent, working_dtype(weight))  # [m, n]
    decomposition = resolved(scaled, rank) if selector in SPECTRAL else None
    columns, rows = (
        select(selector, rank, axis=axis, matrix=scaled, decomposition=decomposition, seed=seed)
        for axis in ("columns", "rows")
    )
    c = take_columns(weight, columns).to(scaled.dtype)  # [m, k]
    r = take_rows(weight, rows).to(scaled.dtype)  # [k, n]
    u = fit_u(scaled, PseudoInverse.of(c, exponent), PseudoInverse.of(r.mT, exponent))  # [k, k]
    return CUR(columns, rows, c, times_power(u, -exponent).to(scaled.dtype), r)


def take_rows(weight: torch.Tensor, rows: tuple[int, ...]) -> torch.Tensor:
    """Return the chosen rows, bit for bit.

    Parameters
    ----------
    weight : Tensor [m, n]
        Any dtype.
    rows : tuple of int
        k indices, each in [0, m).

    Returns
    -------
    Tensor [k, n]
        A copy of the weight's dtype, the rows in the order given.

    Raises
    ------
    IndexError
        If an index is out of its range.
    """
    return weight.index_select(0, torch.tensor(rows, device=weight.device))


def fit_u(
    scaled: torch.Tensor, c_inverse: PseudoInverse, r_inverse: PseudoInverse, *, cutoff: float = 0.0
) -> torch.Tensor:
    """Return U = C⁺WR⁺, all three of C, W and R scaled; for the unscaled C and R it is 2^-exponent of it.

    Parameters
    ----------
    scaled : Tensor [m, n]
        2^-exponent · W.
    c_inverse, r_inverse : PseudoInverse
        Of C [m, k], and of Rᵀ [n, k].
    cutoff : float
        In [0, 1); see :meth:`worker.lowrank.lstsq.PseudoInverse.solve`.

    Returns
    -------
    Tensor [k, k]
        U, in float64.
    """
    x = c_inverse.solve(scaled, cutoff=cutoff)  # [k, n]
    return r_inverse.solve(x.mT, cutoff=cutoff).mT  # [k, k]
