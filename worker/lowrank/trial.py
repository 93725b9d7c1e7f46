"""One rank tried: the factors as they would be stored, and their measured error."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from worker.lowrank.cur import fit_u, take_rows
from worker.lowrank.cx import take_columns
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.lstsq import PseudoInverse
from worker.lowrank.outcome import FactorRequest
from worker.lowrank.ranks import ErrorRank
from worker.lowrank.residual import Residual, measure
from worker.lowrank.scale import scaled_copy, times_power, working_dtype
from worker.lowrank.selectors import Axis, Indices, select
from worker.lowrank.storage import Factors, fits, least_rounded, stored
from worker.lowrank.svd import is_optimal, truncate


class OutOfRangeError(ArithmeticError):
    """The dtype that was asked for cannot hold the factors."""


@dataclass(frozen=True)
class Trial:
    """Stored factors of one rank; `accurate` is False where the decomposition behind them was not."""

    rank: int
    factors: Factors
    residual: Residual
    accurate: bool = True
    columns: Indices | None = None
    rows: Indices | None = None


@dataclass(frozen=True)
class Bench:
    """One weight, one request and one decomposition, on which ranks are tried."""

    weight: torch.Tensor
    exponent: int
    request: FactorRequest
    decomposition: Decomposition

    def attempt(self, rank: int) -> Trial:
        """Factor the weight at one rank, 1 ≤ k ≤ min(m, n).

        Raises
        ------
        OutOfRangeError
            If the dtype cannot hold the factors.
        NotConvergedError
            If the fit to columns and rows was not found.
        """
        return self._svd(rank) if self.request.method == "svd" else self._skeleton(rank)

    def _svd(self, rank: int) -> Trial:
        exact = truncate(self.decomposition, rank, self.exponent).factors
        factors = stored(exact, self.request.dtype)
        if factors is None:
            raise OutOfRangeError
        residual = self._measured(exact)
        accurate = is_optimal(residual.relative, self.decomposition, rank)
        if self.request.dtype != exact[0].dtype:
            residual = self._measured(factors)
        return Trial(rank, factors, residual, accurate)

    def _skeleton(self, rank: int) -> Trial:
        columns = self._select(rank, "columns")
        rows = self._select(rank, "rows") if self.request.method == "cur" else None
        best = least_rounded(self._fit(columns, rows), self.request.dtype, self._measured)
        if best is None:
            raise OutOfRangeError
        factors, residual = best
        return Trial(rank, factors, residual, columns=columns, rows=rows)

    def _fit(self, columns: Indices, rows: Indices | None) -> Callable[[float], Factors]:
        # The fit is to the columns and rows as they are stored, so that it makes up for their rounding too.
        c = self._held(take_columns(self.weight, columns))  # [m, k]
        c_inverse = PseudoInverse.of(c, self.exponent)
        if rows is None:
            return lambda cutoff: (c_inverse.solve(self._scaled, cutoff=cutoff), c)
        r = self._held(take_rows(self.weight, rows))  # [k, n]
        r_inverse = PseudoInverse.of(r.mT, self.exponent)

        def fit(cutoff: float) -> Factors:
            u = fit_u(self._scaled, c_inverse, r_inverse, cutoff=cutoff)  # [k, k]
            if self.request.storage == "two":
                return u @ times_power(r.to(torch.float64), -self.exponent), c
            return r, times_power(u, -self.exponent), c

        return fit

    def _held(self, taken: torch.Tensor) -> torch.Tensor:
        if not fits(taken, self.request.dtype):
            raise OutOfRangeError
        return taken.to(self.request.dtype)

    def _select(self, rank: int, axis: Axis) -> Indices:
        return select(
            self.request.selector,
            rank,
            axis=axis,
            matrix=self._scaled,
            decomposition=self.decomposition,
            seed=self.request.seed,
        )

    def _measured(self, factors: Factors) -> Residual:
        # An error that is held against a promise is measured to the last digit.
        in_float64 = isinstance(self.request.rank, ErrorRank)
        return measure(self.weight, factors, self.exponent, in_float64=in_float64)

    @cached_property
    def _scaled(self) -> torch.Tensor:
        return scaled_copy(self.weight, self.exponent, working_dtype(self.weight))  # [m, n]
