"""What is asked of one weight, and what the result is."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

import torch

from schemas.spectrum import TIE
from schemas.spectrum_rank import AutoRule, auto_rank
from worker.lowrank.candidate import Method
from worker.lowrank.decomposition import Decomposition
from worker.lowrank.rounding import RoundedMatrix
from worker.lowrank.scale import DTYPES
from worker.lowrank.statistics import Statistics


class Reason(StrEnum):
    """Why the numerics kept a weight dense.

    Each value is one of ``schemas.report.KeptReason``, which also has the reasons of the planner.
    """

    NO_SAVING = "no_saving"
    RANK_ZERO = "rank_zero"
    NOT_FINITE = "not_finite"
    NOT_CONVERGED = "not_converged"
    OUT_OF_RANGE = "out_of_range"


@dataclass(frozen=True)
class EnergyRank:
    """The least k with Σ_{i≤k} σᵢ² ≥ τ·Σσᵢ², for τ = `energy` in (0, 1]."""

    energy: float

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy must lie in (0, 1], not {self.energy}")

    @property
    def loss(self) -> float:
        """The share of Σσᵢ² that may be lost: 1 - τ."""
        return 1 - self.energy

    def least_rank(self, decomposition: Decomposition, shape: tuple[int, int]) -> int | None:  # noqa: ARG002
        """Return the rank, or None where this decomposition does not decide it."""
        return decomposition.smallest_rank_within(self.loss)


@dataclass(frozen=True)
class ErrorRank:
    """The least k with ‖W - Ŵ‖_F ≤ ε·‖W‖_F, for ε = `epsilon` ≥ 0."""

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon must be a number of at least 0, not {self.epsilon}")

    @property
    def loss(self) -> float:
        """The share of Σσᵢ² that may be lost: ε²."""
        return self.epsilon**2

    def least_rank(self, decomposition: Decomposition, shape: tuple[int, int]) -> int | None:  # noqa: ARG002
        """Return a rank that no smaller one can meet, or None where this decomposition does not decide it."""
        return decomposition.smallest_rank_within(self.loss)

    def allows(self, relative_error: float) -> bool:
        """Return whether a measured error meets the limit; equal to twelve digits is equal."""
        return relative_error <= self.epsilon * (1 + TIE)


@dataclass(frozen=True)
class AutoRank:
    """The number of singular values that stand out of noise: see :func:`schemas.spectrum_rank.auto_rank`."""

    rule: AutoRule

    def least_rank(self, decomposition: Decomposition, shape: tuple[int, int]) -> int | None:
        """Return the rank, maybe 0, or None where this decomposition does not decide it."""
        if decomposition.tail_energy > 0:
            return None
        return auto_rank(self.rule, decomposition.singular_values.tolist(), shape, decomposition.roundoff)


SpectralRank = EnergyRank | ErrorRank | AutoRank


@dataclass(frozen=True, kw_only=True)
class FactorRequest:
    """How one weight is to be factored.

    Attributes
    ----------
    method : Method
        :class:`worker.lowrank.SVDMethod`, :class:`worker.lowrank.CXMethod`,
        :class:`worker.lowrank.CURMethod`, or another one.
    rank : int, EnergyRank, ErrorRank or AutoRank
        The rank, ≥ 1, or the rule that finds it.
    max_rank : int
        ≥ 0: the largest rank that saves parameters; 0 where none does.
    dtype : torch.dtype or None
        Of the stored factors; None for the dtype that is computed in, which is float32 at least.
    seed : int
        ≥ 0, for selectors that draw at random and for the Krylov space.
    align, min_rank : int
        ≥ 1: a rank that a rule finds is raised to the next multiple of `align`, and to `min_rank` at least.
    num_vectors : int or None
        The number of singular vectors that a decomposition must hold, with all singular values, so that it
        serves other requests too. None for what this request needs, computed as fast as possible.
    statistics : Statistics or None
        Of the layer; its Gram matrix G = XXᵀ of the inputs X of W [m, n] is one in which
        :func:`worker.lowrank.gram_fault` finds no fault. With it, svd and the fit of cur minimize
        ‖(W - Ŵ)X‖_F, or with F of the gradients tr((W - Ŵ)ᵀF(W - Ŵ)G), or tr((W - Ŵ)ᵀF(W - Ŵ)) where G is not
        there; columns and rows are chosen for it, and ranks by energy and error refer to it.
    correct_bias : bool
        Whether the bias will take up (W - Ŵ)μ, so that G - Nμμᵀ takes the place of G. Nothing changes where
        the statistics have no mean or count.

    Raises
    ------
    ValueError
        If a field is out of its range.
    """

    method: Method
    rank: int | SpectralRank
    max_rank: int
    dtype: torch.dtype | None
    seed: int = 0
    align: int = 1
    min_rank: int = 1
    num_vectors: int | None = None
    statistics: Statistics | None = field(default=None, compare=False, repr=False)
    correct_bias: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.rank, int) and self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")
        if min(self.align, self.min_rank) < 1:
            raise ValueError(f"align and min_rank must be at least 1, not {self.align} and {self.min_rank}")
        if self.max_rank < 0:
            raise ValueError(f"max_rank must be at least 0, not {self.max_rank}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"factors cannot be stored as {self.dtype}")
        check_seed(self.seed)

    def ceiling(self, weight: torch.Tensor) -> int:
        """Return the largest rank that this weight can have and that saves parameters; 0 where none does."""
        shape: tuple[int, ...] = weight.shape
        return min((self.max_rank, *shape))

    def aligned(self, rank: int) -> int:
        """Return the least allowed rank that is not below this one."""
        return -(-max(rank, self.min_rank) // self.align) * self.align


def check_rank(rank: int, weight: torch.Tensor) -> None:
    """Raise ValueError for a rank that this weight cannot have."""
    largest = min(weight.shape)
    if not 1 <= rank <= largest:
        raise ValueError(f"rank must lie between 1 and min(m, n) = {largest}, not {rank}")


def check_seed(seed: int) -> None:
    """Raise ValueError for a seed that the generators refuse."""
    if seed < 0:
        raise ValueError(f"seed must be ≥ 0, not {seed}")


@dataclass(frozen=True, kw_only=True)
class OutputError:
    """The measured error of the outputs WX, ‖(W - Ŵ)X‖_F/‖WX‖_F, and its squares.

    `optimal_error` is the best possible one at the rank, None where it is not known
    or another error was minimized.
    """

    relative_error: float
    squared_error: float
    squared_norm: float
    optimal_error: float | None


@dataclass(frozen=True, kw_only=True)
class Factored:
    """A weight W [m, n] as factors of rank k, with the error of the factors as they are stored.

    Where W is `rounded` to Q, the factors approximate W - Q, and there are none at rank 0.

    Attributes
    ----------
    factors : tuple of Tensor
        Contiguous, in the stored dtype, input side first as in a ``torch.nn.Sequential``: ``(right [k, n],
        left [m, k])`` for svd, cx and cur in two, ``(r [k, n], u [k, k], c [m, k])`` for cur in three.
    rank : int
        k.
    relative_error : float
        ‖W - Ŵ‖_F/‖W‖_F of the factors after the cast; 0 for the zero matrix.
    squared_error, squared_norm : float
        ‖W - Ŵ‖_F² and ‖W‖_F².
    optimal_error : float or None
        The best possible relative error at this rank; None where another error was minimized.
    output_error : OutputError or None
        The error of the outputs, where there is a Gram matrix.
    singular_values : Tensor [p]
        float64 on the CPU, descending: all min(m, n) of them, or the leading ones where more were not needed;
        those of F^½ W G^½ where there are statistics, with both matrices divided by √N, so that their squares
        are in units of the loss. None without factors.
    decomposition : Decomposition or None
        The decomposition that the factors come from, if there are any.
    columns, rows : tuple of int, or None
        The columns and rows that cur and cx chose, ascending.
    rounded : RoundedMatrix or None
        Q, if W is rounded.
    predicted_loss : float or None
        tr((W - Ŵ)ᵀF(W - Ŵ)G)/N, G centered where the bias is corrected; None where F, G or N is not known.
    bias_shift : Tensor [m] or None
        (W - Ŵ)μ in float64, which the bias takes up; None where it is not to be corrected.
    """

    factors: tuple[torch.Tensor, ...]
    rank: int
    relative_error: float
    squared_error: float
    squared_norm: float
    optimal_error: float | None
    singular_values: torch.Tensor | None
    decomposition: Decomposition | None = field(compare=False, repr=False)
    columns: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    output_error: OutputError | None = None
    predicted_loss: float | None = None
    rounded: RoundedMatrix | None = field(default=None, compare=False, repr=False)
    bias_shift: torch.Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A weight that stays dense, the reason, and its singular values where they are known."""

    reason: Reason
    singular_values: torch.Tensor | None = None
