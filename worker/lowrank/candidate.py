"""Candidate factorizations of one weight at a rank, stored and measured; the search for the least rank."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeVar

import torch

from worker.lowrank.blas import product
from worker.lowrank.decomposition import Axis, Decomposition
from worker.lowrank.error import Residual, measure
from worker.lowrank.lapack import converging, fix_signs, thin_qr
from worker.lowrank.products import WeightedProducts
from worker.lowrank.scale import ScaledWeight
from worker.lowrank.selectors import Indices, Selector, select
from worker.lowrank.truncation import Factors, fits_dtype
from worker.lowrank.weighting import (
    WeightedError,
    WeightedSums,
    Weighting,
    measure_weighted,
    sums_of_weight,
)


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
    weighted : WeightedError or None
        The error that the statistics weigh, where there are any.
    """

    rank: int
    factors: Factors
    residual: Residual
    accurate: bool = True
    columns: Indices | None = None
    rows: Indices | None = None
    weighted: WeightedError | None = None

    @property
    def objective(self) -> Residual:
        """The error that is minimized: the weighted one where there are statistics."""
        return self.residual if self.weighted is None else self.weighted.objective


@dataclass(frozen=True, eq=False)
class DecomposedWeight:
    """One weight and one decomposition of it, from which a method makes candidates.

    Attributes
    ----------
    scaled : ScaledWeight
        W [m, n], and A = 2^-exponent · W.
    decomposition : Decomposition
        Of A, or of TᵀAS where errors are weighted with F = TTᵀ and G = SSᵀ.
    dtype : torch.dtype or None
        Of the stored factors; None for the dtype that is computed in.
    seed : int
        ≥ 0, for selectors that draw at random.
    weighting : Weighting or None
        F, G or both.
    needs_exact_error : bool
        Whether a limit on the error must be met, so that the error is measured in float64.
    products : WeightedProducts or None
        Of the weight and its statistics, where there are any.
    """

    scaled: ScaledWeight
    decomposition: Decomposition
    dtype: torch.dtype | None
    seed: int = 0
    weighting: Weighting | None = None
    needs_exact_error: bool = False
    products: WeightedProducts | None = None

    @cached_property
    def target(self) -> torch.Tensor:
        """What is to be approximated [m, n]: A, or TᵀAS where errors are weighted.

        Raises
        ------
        NotConvergedError
            If T or S was not found.
        """
        return self.times_input_root(self.times_output_root(self.scaled.matrix))

    def times_output_root(self, columns: torch.Tensor) -> torch.Tensor:
        """Return Tᵀ·columns [m, k]; raises as :attr:`target`."""
        return columns if self.weighting is None else self._found(self.weighting.weigh_outputs, columns)

    def times_input_root(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows·S [k, n]; raises as :attr:`target`."""
        return rows if self.weighting is None else self._found(self.weighting.weigh_inputs, rows)

    def _found(self, weigh: Callable[[torch.Tensor], torch.Tensor], matrix: torch.Tensor) -> torch.Tensor:
        with converging(matrix.device):
            return weigh(matrix)

    def select(self, selector: Selector, rank: int, axis: Axis) -> Indices:
        """Return the chosen columns or rows, ascending; see :func:`worker.lowrank.selectors.select`."""
        by_rows = axis == "rows"
        return select(
            selector,
            rank,
            axis=axis,
            matrix=self._rows_by_output if by_rows else self._columns_by_input,
            decomposition=self._decomposition_of_rows(rank) if by_rows else self._of_outputs,
            seed=self.seed,
        )

    @property
    def _columns_by_input(self) -> torch.Tensor:
        """TᵀA, each column times the size of its input where there is a Gram matrix [m, n].

        Columns of TᵀAS would not do: they mix those of A where inputs are correlated.
        """
        columns = self.times_output_root(self.scaled.matrix)
        if self.weighting is None or self.weighting.inputs is None:
            return columns
        sizes = self.weighting.inputs.scale  # [n]
        return columns * (sizes / sizes.max()).to(columns.dtype)

    @property
    def _rows_by_output(self) -> torch.Tensor:
        """AS, each row times the size of its output's gradients where those are known [m, n].

        Rows of TᵀAS would not do: they mix those of A where gradients are correlated.
        """
        rows = self.times_input_root(self.scaled.matrix)
        if self.weighting is None or self.weighting.outputs is None:
            return rows
        sizes = self.weighting.outputs.scale  # [m]
        return rows * (sizes / sizes.max()).to(rows.dtype)[:, None]

    @cached_property
    def _of_outputs(self) -> Decomposition:
        """The decomposition with left vectors where errors are weighted."""
        known = self.decomposition
        if self.weighting is None or known.axis == "rows":
            return known
        right = known.basis.to(self.target)  # [r, n]
        left, _ = thin_qr(product(self.target, right.mT))  # [m, r]
        return replace(known, basis=fix_signs(left.mT.contiguous()), axis="rows")

    def _decomposition_of_rows(self, rank: int) -> Decomposition:
        """Return the decomposition that rows are chosen by: U spans columns of TᵀAS, T⁻ᵀU those of AS."""
        if self.weighting is None or self.weighting.outputs is None:
            return self._of_outputs
        outputs = self.weighting.outputs
        left = outputs.unweigh(self._of_outputs.basis[:rank].to(outputs.core.device).mT)  # [m, k]
        orthonormal, _ = thin_qr(left * outputs.scale[:, None])
        return replace(self._of_outputs, basis=fix_signs(orthonormal.mT.contiguous()))

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

    def weighted_error(self, factors: Factors) -> WeightedError | None:
        """Return the weighted error of factors as they are stored; None without statistics."""
        if self.weighting is None:
            return None
        weight, exponent = self.scaled.weight, self.scaled.exponent
        return measure_weighted(weight, factors, exponent, self.weighting, whole=self._whole)

    @cached_property
    def _whole(self) -> WeightedSums:
        assert self.weighting is not None
        return sums_of_weight(self.scaled.weight, self.scaled.exponent, self.weighting)


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
