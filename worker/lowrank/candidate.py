"""Candidate factorizations of one weight at a rank, stored and measured; the search for the least rank."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import torch

from worker.lowrank.blas import product
from worker.lowrank.calibrated import input_root, measure_output_error
from worker.lowrank.decomposition import Axis, Decomposition
from worker.lowrank.error import Residual, measure
from worker.lowrank.lapack import NotConvergedError, failures
from worker.lowrank.scale import ScaledWeight
from worker.lowrank.selectors import Indices, Selector, select
from worker.lowrank.statistics import Statistics
from worker.lowrank.truncation import Factors, fits_dtype


class OutOfRangeError(ArithmeticError):
    """The dtype that was asked for cannot hold the factors."""


@dataclass(frozen=True)
class Candidate:
    """Stored factors of one rank and their measured error.

    Attributes
    ----------
    rank : int
        k.
    factors : tuple of Tensor
        Contiguous, in the stored dtype, input side first.
    residual : Residual
        ‖W - Ŵ‖_F².
    accurate : bool
        False where the decomposition behind them was not accurate, so that a better solver is needed.
    columns, rows : tuple of int, or None
        The columns and rows that were chosen, ascending.
    output_residual : Residual or None
        ‖(W - Ŵ)X‖_F², where there is a Gram matrix.
    """

    rank: int
    factors: Factors
    residual: Residual
    accurate: bool = True
    columns: Indices | None = None
    rows: Indices | None = None
    output_residual: Residual | None = None

    @property
    def objective(self) -> Residual:
        """The error that is minimized: that of the outputs where there is a Gram matrix."""
        return self.output_residual or self.residual


@dataclass(frozen=True, eq=False)
class DecomposedWeight:
    """One weight and one decomposition of it, from which a method makes candidates.

    Attributes
    ----------
    scaled : ScaledWeight
        W [m, n], and A = 2^-exponent · W.
    decomposition : Decomposition
        Of A, or of A·S with a Gram matrix S·Sᵀ.
    dtype : torch.dtype or None
        Of the stored factors; None for the dtype that is computed in.
    seed : int
        ≥ 0, for selectors that draw at random.
    statistics : Statistics or None
        See :class:`worker.lowrank.FactorRequest`.
    needs_exact_error : bool
        Whether a limit on the error must be met, so that the error is measured in float64.
    """

    scaled: ScaledWeight
    decomposition: Decomposition
    dtype: torch.dtype | None
    seed: int = 0
    statistics: Statistics | None = None
    needs_exact_error: bool = False

    @property
    def gram(self) -> torch.Tensor | None:
        """G [n, n] of the inputs, where the statistics have one."""
        return None if self.statistics is None else self.statistics.gram

    @cached_property
    def target(self) -> torch.Tensor:
        """What is to be approximated [m, n]: A, or A·S where there is a Gram matrix S·Sᵀ."""
        return self.times_input_root(self.scaled.matrix)

    def times_input_root(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [k, n], times S where there is a Gram matrix.

        Raises
        ------
        NotConvergedError
            If S was not found.
        """
        root = self._input_root
        return rows if root is None else product(rows.to(torch.float64), root)

    @cached_property
    def _input_root(self) -> torch.Tensor | None:
        device = self.scaled.weight.device
        try:
            return None if self.gram is None else input_root(self.gram, device)
        except failures(device) as error:
            raise NotConvergedError from error

    def select(self, selector: Selector, rank: int, axis: Axis) -> Indices:
        """Return the chosen columns or rows, ascending; see :func:`worker.lowrank.selectors.select`."""
        return select(
            selector,
            rank,
            axis=axis,
            matrix=self.target if axis == "rows" else self._columns_by_input,
            decomposition=self.decomposition,
            seed=self.seed,
        )

    @property
    def _columns_by_input(self) -> torch.Tensor:
        """A, each column times the size of its input where there is a Gram matrix [m, n].

        Columns of A·S would not do: they mix those of A where inputs are correlated.
        """
        if self.gram is None:
            return self.scaled.matrix
        sizes = self.gram.diagonal().to(self.scaled.matrix.device, torch.float64).sqrt()  # [n]
        return self.scaled.matrix * (sizes / sizes.max()).to(self.scaled.matrix.dtype)

    def cast(self, part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a part of W in the dtype that is stored.

        Raises
        ------
        OutOfRangeError
            If the dtype cannot hold it.
        """
        if not fits_dtype(part, dtype):
            raise OutOfRangeError
        return part.to(dtype)

    def residual(self, factors: Factors) -> Residual:
        """Return ‖W - Ŵ‖_F² of factors as they are stored."""
        return measure(self.scaled.weight, factors, self.scaled.exponent, in_float64=self.needs_exact_error)

    def output_residual(self, factors: Factors) -> Residual | None:
        """Return ‖(W - Ŵ)X‖_F² of factors as they are stored; None without a Gram matrix."""
        if self.gram is None:
            return None
        return measure_output_error(self.scaled.weight, factors, self.scaled.exponent, self.gram)


class Method(Protocol):
    """How a weight is approximated at a rank: the one thing in which svd, cx and cur differ."""

    def candidate(self, decomposed: DecomposedWeight, rank: int) -> Candidate:
        """Return stored factors of this rank and their error.

        Parameters
        ----------
        decomposed : DecomposedWeight
            The weight, and a decomposition of it.
        rank : int
            k, at most the number of vectors of the decomposition.

        Raises
        ------
        OutOfRangeError
            If the dtype cannot hold the factors.
        NotConvergedError
            If a least-squares fit was not found.
        """
        ...


T = TypeVar("T")


def smallest_rank(start: int, ceiling: int, attempt: Callable[[int], T], accept: Callable[[T], bool]) -> T:
    """Return the attempt at the least accepted rank in [start, ceiling], or at the ceiling if none is.

    Gallops up from `start` and then bisects, so it needs few attempts where `start` is near. Where an attempt
    may fail at a higher rank than one that succeeds, the result is accepted but a lower rank might be too.
    """
    failed, step, rank = start - 1, 1, start
    while not accept(found := attempt(rank)):
        if rank == ceiling:
            return found
        failed, rank, step = rank, min(rank + step, ceiling), 2 * step
    while rank - failed > 1:
        middle = (failed + rank) // 2
        tried = attempt(middle)
        if accept(tried):
            rank, found = middle, tried
        else:
            failed = middle
    return found
