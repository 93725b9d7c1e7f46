"""CX and CUR decompositions: approximate W by k of its columns, or by k of its columns and k of its rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from worker.lowrank.candidate import Candidate, DecomposedWeight, OutOfRangeError
from worker.lowrank.error import Residual
from worker.lowrank.factor import factor_at
from worker.lowrank.lstsq import PseudoInverse
from worker.lowrank.scale import times_power, working_dtype
from worker.lowrank.selectors import SELECTORS, Indices, Selector
from worker.lowrank.truncation import Factors, best_rounded

# Named again in schemas/planning/forms/base.py, since lowrank imports nothing of ours but schemas.spectrum; a
# test compares them.
Storage = Literal["three", "two"]
STORAGES: tuple[Storage, ...] = get_args(Storage)


@dataclass(frozen=True)
class CXMethod:
    """W ≈ C·X, C of k columns of W and X = C⁺W; a :class:`worker.lowrank.candidate.Method`.

    Weighted by F = TTᵀ, the best X for these columns is (TᵀC)⁺(TᵀW), whatever G is.
    """

    selector: Selector = "qdeim"

    def __post_init__(self) -> None:
        _check_selector(self.selector)

    def candidate(self, decomposed: DecomposedWeight, rank: int) -> Candidate:
        """Return ``(X [k, n], C [m, k])``; see :class:`worker.lowrank.candidate.Method`."""
        columns = decomposed.select(self.selector, rank, "columns")
        dtype = decomposed.dtype or working_dtype(decomposed.scaled.weight)
        c, c_inverse = _fitted_columns(decomposed, columns, dtype)
        weighed = decomposed.times_output_root(decomposed.scaled.matrix)

        def fit(cutoff: float) -> Factors:
            return c_inverse.solve(weighed, cutoff=cutoff), c

        return _best_candidate(decomposed, fit, dtype, columns, None)


@dataclass(frozen=True)
class CURMethod:
    """W ≈ C·U·R, C of k columns and R of k rows of W; a :class:`worker.lowrank.candidate.Method`.

    U = C⁺WR⁺ is the best for these columns and rows; weighted by F = TTᵀ and G = SSᵀ it is
    (TᵀC)⁺(TᵀWS)(RS)⁺. ``storage``
    "three" stores R, U and C, and "two" stores U·R and C.
    """

    selector: Selector = "qdeim"
    storage: Storage = "three"

    def __post_init__(self) -> None:
        _check_selector(self.selector)
        if self.storage not in STORAGES:
            raise ValueError(f"storage must be one of {', '.join(STORAGES)}, not {self.storage!r}")

    def candidate(self, decomposed: DecomposedWeight, rank: int) -> Candidate:
        """Return ``(R [k, n], U [k, k], C [m, k])`` or ``(U·R, C)``; see the protocol ``Method``."""
        columns = decomposed.select(self.selector, rank, "columns")
        rows = decomposed.select(self.selector, rank, "rows")
        scaled = decomposed.scaled
        dtype = decomposed.dtype or working_dtype(scaled.weight)
        c, c_inverse = _fitted_columns(decomposed, columns, dtype)
        r = decomposed.cast(take_rows(scaled.weight, rows), dtype)  # [k, n]
        scaled_r = times_power(r.to(torch.float64), -scaled.exponent)
        r_inverse = PseudoInverse.of(decomposed.times_input_root(scaled_r).mT, 0)

        def fit(cutoff: float) -> Factors:
            u = fit_u(decomposed.target, c_inverse, r_inverse, cutoff=cutoff)  # [k, k]
            if self.storage == "two":
                return u @ times_power(r.to(torch.float64), -scaled.exponent), c
            return r, times_power(u, -scaled.exponent), c

        return _best_candidate(decomposed, fit, dtype, columns, rows)


def _fitted_columns(
    decomposed: DecomposedWeight, columns: Indices, dtype: torch.dtype
) -> tuple[torch.Tensor, PseudoInverse]:
    # The fit is to the columns as they are stored, so that it corrects for their rounding too.
    c = decomposed.cast(take_columns(decomposed.scaled.weight, columns), dtype)  # [m, k]
    scaled = times_power(c.to(torch.float64), -decomposed.scaled.exponent)
    return c, PseudoInverse.of(decomposed.times_output_root(scaled), 0)


def _best_candidate(
    decomposed: DecomposedWeight,
    fit: Callable[[float], Factors],
    dtype: torch.dtype,
    columns: Indices,
    rows: Indices | None,
) -> Candidate:
    def objective(factors: Factors) -> Residual:
        weighted = decomposed.weighted_error(factors)
        return decomposed.residual(factors) if weighted is None else weighted.objective

    best = best_rounded(fit, dtype, objective)
    if best is None:
        raise OutOfRangeError
    factors, residual = best
    rank = len(columns)
    if decomposed.weighting is None:
        return Candidate(rank, factors, residual, columns=columns, rows=rows)
    plain, weighted = decomposed.residual(factors), decomposed.weighted_error(factors)
    return Candidate(rank, factors, plain, columns=columns, rows=rows, weighted=weighted)


def _check_selector(selector: str) -> None:
    if selector not in SELECTORS:
        raise ValueError(f"selector must be one of {', '.join(SELECTORS)}, not {selector!r}")


@dataclass(frozen=True)
class CX:
    """W ≈ c · x: c [m, k] holds exact columns of W, x [k, n] = C⁺W; `columns` ascend."""

    columns: tuple[int, ...]
    c: torch.Tensor
    x: torch.Tensor

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Input side first, as in a ``torch.nn.Sequential``."""
        return self.x, self.c


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


def cx(weight: torch.Tensor, rank: int, *, selector: Selector = "qdeim", seed: int = 0) -> CX:
    """Return W ≈ C X with C of k columns of W and X = C⁺W, the best X for them in the Frobenius norm.

    Its error is never below that of the SVD at the same rank (Eckart and Young 1936), and with the best
    columns at most √(k + 1) times that (Deshpande and Rademacher 2006). Beyond the numerical rank of W some
    columns are dependent; directions of C are left out where rounding the factors would cost more.

    Parameters
    ----------
    weight : Tensor [m, n]
        Finite; float64, float32, float16 or bfloat16.
    rank : int
        1 ≤ k ≤ min(m, n).
    selector : {"qdeim", "deim", "cpqr", "osinsky", "leverage", "linear_time"}
        How columns are chosen: see :func:`worker.lowrank.selectors.select`.
    seed : int
        ≥ 0; for the random draws of ``leverage`` and ``linear_time``.

    Returns
    -------
    CX
        Factors in float64 for float64 input, else in float32, which holds narrower columns exactly.

    Raises
    ------
    ValueError
        If an argument is out of its range or the weight is not finite.
    ArithmeticError
        If no solver found the singular vectors of the weight, or those of the chosen columns.

    Examples
    --------
    >>> cx(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2).columns
    (1, 2)
    """
    found = factor_at(weight, CXMethod(selector), rank, seed=seed)
    x, c = found.factors
    assert found.columns is not None
    return CX(found.columns, c, x)


def cur(weight: torch.Tensor, rank: int, *, selector: Selector = "qdeim", seed: int = 0) -> CUR:
    """Return W ≈ C U R with U = C⁺WR⁺, the best U for these columns and rows in the Frobenius norm.

    The columns are those that :func:`cx` chooses with the same selector and seed, so its error is never below
    that of CX (Mahoney and Drineas 2009; Sorensen and Embree 2016).

    Parameters
    ----------
    weight : Tensor [m, n]
        Finite; float64, float32, float16 or bfloat16.
    rank : int
        1 ≤ k ≤ min(m, n).
    selector : {"qdeim", "deim", "cpqr", "osinsky", "leverage", "linear_time"}
        How columns and rows are chosen: see :func:`worker.lowrank.selectors.select`.
    seed : int
        ≥ 0; for the random draws of ``leverage`` and ``linear_time``.

    Returns
    -------
    CUR
        Factors in float64 for float64 input, else in float32, which holds narrower columns exactly.

    Raises
    ------
    ValueError
        If an argument is out of its range or the weight is not finite.
    ArithmeticError
        If no solver found the singular vectors of the weight, or those of the chosen columns and rows.

    Examples
    --------
    >>> found = cur(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
    >>> found.columns, found.rows
    ((1, 2), (1, 2))
    """
    found = factor_at(weight, CURMethod(selector), rank, seed=seed)
    r, u, c = found.factors
    assert found.columns is not None
    assert found.rows is not None
    return CUR(found.columns, found.rows, c, u, r)


def take_columns(weight: torch.Tensor, columns: Indices) -> torch.Tensor:
    """Return columns of W [m, n], bit for bit, in the order given [m, k]; IndexError for one out of range."""
    return weight.index_select(1, torch.tensor(columns, device=weight.device))


def take_rows(weight: torch.Tensor, rows: Indices) -> torch.Tensor:
    """Return rows of W [m, n], bit for bit, in the order given [k, n]; IndexError for one out of range."""
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
