"""One rank tried: the factors as they would be stored, and their measured error."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from worker.lowrank.blas import product
from worker.lowrank.cur import fit_u, take_rows
from worker.lowrank.cx import take_columns
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.lapack import NotConvergedError, failures
from worker.lowrank.lstsq import PseudoInverse
from worker.lowrank.outcome import FactorRequest
from worker.lowrank.projection import project
from worker.lowrank.ranks import ErrorRank
from worker.lowrank.residual import Residual, measure
from worker.lowrank.scale import ScaledWeight, times_power
from worker.lowrank.selectors import Axis, Indices, select
from worker.lowrank.storage import Factors, fits, least_rounded
from worker.lowrank.svd import is_optimal
from worker.lowrank.weighted import input_root, measure_weighted, weighted_floor


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
    weighted: Residual | None = None

    @property
    def judged(self) -> Residual:
        """The error that was to be small: that of the outputs where there is a Gram matrix."""
        return self.weighted or self.residual


@dataclass(frozen=True)
class Bench:
    """One weight, one request and one decomposition, on which ranks are tried."""

    scaled: ScaledWeight
    request: FactorRequest
    decomposition: Decomposition

    def attempt(self, rank: int) -> Trial:
        """Factor the weight at one rank, 1 ≤ k ≤ min(m, n).

        Raises
        ------
        OutOfRangeError
            If the dtype cannot hold the factors.
        NotConvergedError
            If the decomposition has too few vectors, or the fit to columns and rows was not found.
        """
        if rank > len(self.decomposition.basis):
            raise NotConvergedError
        return self._svd(rank) if self.request.method == "svd" else self._skeleton(rank)

    def _svd(self, rank: int) -> Trial:
        dtype = self.request.dtype
        found = project(self.scaled, self.decomposition, rank, dtype=dtype)
        if found is None:
            raise OutOfRangeError
        if self.request.gram is not None:
            weighted = self._weighted(found.factors)
            floor = weighted_floor(self.scaled, self.request.gram, weighted, rounding=torch.finfo(dtype).eps)
            accurate = is_optimal(weighted.relative, self.decomposition, rank, rounding=floor)
            return Trial(rank, found.factors, found.residual, accurate, weighted=weighted)
        working = torch.promote_types(self.scaled.matrix.dtype, self.decomposition.basis.dtype)
        rounding = 0.0 if dtype == working else torch.finfo(dtype).eps
        accurate = is_optimal(found.residual.relative, self.decomposition, rank, rounding=rounding)
        residual = self._measured(found.factors) if self._promised else found.residual
        return Trial(rank, found.factors, residual, accurate)

    def _skeleton(self, rank: int) -> Trial:
        columns = self._select(rank, "columns")
        rows = self._select(rank, "rows") if self.request.method == "cur" else None
        calibrated = self.request.gram is not None
        judge = self._weighted if calibrated else self._measured
        best = least_rounded(self._fit(columns, rows), self.request.dtype, judge)
        if best is None:
            raise OutOfRangeError
        factors, residual = best
        if calibrated:
            plain = self._measured(factors)
            return Trial(rank, factors, plain, columns=columns, rows=rows, weighted=residual)
        return Trial(rank, factors, residual, columns=columns, rows=rows)

    def _fit(self, columns: Indices, rows: Indices | None) -> Callable[[float], Factors]:
        # The fit is to the columns and rows as they are stored, so that it makes up for their rounding too.
        c = self._held(take_columns(self.scaled.weight, columns))  # [m, k]
        c_inverse = PseudoInverse.of(c, self.scaled.exponent)
        if rows is None:
            return lambda cutoff: (c_inverse.solve(self.scaled.matrix, cutoff=cutoff), c)
        r = self._held(take_rows(self.scaled.weight, rows))  # [k, n]
        r_inverse = PseudoInverse.of(self._applied_to(r).mT, self.scaled.exponent)

        def fit(cutoff: float) -> Factors:
            u = fit_u(self._outputs, c_inverse, r_inverse, cutoff=cutoff)  # [k, k]
            if self.request.storage == "two":
                return u @ times_power(r.to(torch.float64), -self.scaled.exponent), c
            return r, times_power(u, -self.scaled.exponent), c

        return fit

    @cached_property
    def _outputs(self) -> torch.Tensor:
        """A, or A·S where there is a Gram matrix S·Sᵀ [m, n]."""
        return self._applied_to(self.scaled.matrix)

    def _applied_to(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows as the inputs bring them to bear: CUR's U is the best between A·S and R·S."""
        root = self._input_root
        return rows if root is None else product(rows.to(torch.float64), root)

    @cached_property
    def _input_root(self) -> torch.Tensor | None:
        gram, device = self.request.gram, self.scaled.weight.device
        try:
            return None if gram is None else input_root(gram, device)
        except failures(device) as error:
            raise NotConvergedError from error

    def _held(self, taken: torch.Tensor) -> torch.Tensor:
        if not fits(taken, self.request.dtype):
            raise OutOfRangeError
        return taken.to(self.request.dtype)

    def _select(self, rank: int, axis: Axis) -> Indices:
        return select(
            self.request.selector,
            rank,
            axis=axis,
            matrix=self._outputs if axis == "rows" else self._sized,
            decomposition=self.decomposition,
            seed=self.request.seed,
        )

    @property
    def _sized(self) -> torch.Tensor:
        """A, each column as large as its input makes it where there is a Gram matrix [m, n].

        Columns of A·S would not do: they mix those of A where inputs are correlated.
        """
        if self.request.gram is None:
            return self.scaled.matrix
        sizes = self.request.gram.diagonal().to(self.scaled.matrix.device, torch.float64).sqrt()  # [n]
        return self.scaled.matrix * (sizes / sizes.max()).to(self.scaled.matrix.dtype)

    def _measured(self, factors: Factors) -> Residual:
        return measure(self.scaled.weight, factors, self.scaled.exponent, in_float64=self._promised)

    def _weighted(self, factors: Factors) -> Residual:
        assert self.request.gram is not None
        return measure_weighted(self.scaled.weight, factors, self.scaled.exponent, self.request.gram)

    @property
    def _promised(self) -> bool:
        """Whether the error is held against a promise, and so is measured to the last digit."""
        return isinstance(self.request.rank, ErrorRank)
