"""What is asked of one weight, and what comes of it."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import torch

from worker.lowrank.decomposition import Decomposition
from worker.lowrank.edge import DTYPES, check_seed, check_selector
from worker.lowrank.ranks import EnergyRank, ErrorRank
from worker.lowrank.selectors import Selector

METHODS = ("svd", "cur", "cx")
STORAGES = ("three", "two")


class Reason(StrEnum):
    """Why a weight was kept dense."""

    NO_SAVING = "no_saving"
    NOT_FINITE = "not_finite"
    NOT_CONVERGED = "not_converged"
    OUT_OF_RANGE = "out_of_range"


@dataclass(frozen=True, kw_only=True)
class FactorRequest:
    """How one weight is to be factored.

    Attributes
    ----------
    method : {"svd", "cur", "cx"}
        The decomposition.
    rank : int, EnergyRank or ErrorRank
        The rank, ≥ 1, or the rule that finds it.
    max_rank : int
        ≥ 0: the largest rank that saves parameters; 0 where none does.
    dtype : torch.dtype
        Of the stored factors.
    selector : Selector
        For ``cur`` and ``cx``.
    storage : {"three", "two"}
        For ``cur``: R, U and C, or U·R and C.
    seed : int
        ≥ 0, for selectors that use chance, and for sketches.
    align, min_rank : int
        ≥ 1: a rank that a rule finds goes up to the next multiple of `align`, and to `min_rank` at least.
    extent : int or None
        How many singular vectors a decomposition is to hold, with all singular values, so that it serves
        other requests too; None: what this request needs, as fast as it can be had.
    gram : Tensor [n, n] or None
        G = XXᵀ of the inputs X of W [m, n], without a fault (see :func:`worker.lowrank.gram_fault`): then it
        is ‖(W - Ŵ)X‖_F that svd and the fit of cur minimise, that columns and rows are chosen for, and that
        ranks by energy and error are told by.

    Raises
    ------
    ValueError
        If a field is out of its range.
    """

    method: Literal["svd", "cur", "cx"]
    rank: int | EnergyRank | ErrorRank
    max_rank: int
    dtype: torch.dtype
    selector: Selector = "qdeim"
    storage: Literal["three", "two"] = "three"
    seed: int = 0
    align: int = 1
    min_rank: int = 1
    extent: int | None = None
    gram: torch.Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        if self.storage not in STORAGES:
            raise ValueError(f"storage must be one of {', '.join(STORAGES)}, not {self.storage!r}")
        if isinstance(self.rank, int) and self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")
        if min(self.align, self.min_rank) < 1:
            raise ValueError(f"align and min_rank must be at least 1, not {self.align} and {self.min_rank}")
        if self.max_rank < 0:
            raise ValueError(f"max_rank must be at least 0, not {self.max_rank}")
        if self.dtype not in DTYPES:
            raise ValueError(f"factors cannot be stored as {self.dtype}")
        check_selector(self.selector)
        check_seed(self.seed)

    def ceiling(self, weight: torch.Tensor) -> int:
        """Return the largest rank that this weight can have and that saves parameters; 0 where none does."""
        shape: tuple[int, ...] = weight.shape
        return min((self.max_rank, *shape))

    def aligned(self, rank: int) -> int:
        """Return the least rank that is allowed from this one on."""
        return -(-max(rank, self.min_rank) // self.align) * self.align


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """The error of the outputs WX, measured: ‖(W - Ŵ)X‖_F/‖WX‖_F, its squares, and the least of this rank."""

    relative_error: float
    squared_error: float
    squared_norm: float
    optimal_error: float


@dataclass(frozen=True, kw_only=True)
class Factored:
    """A weight W [m, n] in factors of rank k, measured as stored.

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
        The relative error of the best Ŵ of this rank; None where it was another error that was minimised.
    weighted : Weighted or None
        The error of the outputs, where there is a Gram matrix.
    singular_values : Tensor [p]
        float64 on the CPU, descending: all min(m, n) of them, or the leading ones where no more were needed;
        those of W G^½ where there is a Gram matrix.
    decomposition : Decomposition
        What they were made with.
    columns, rows : tuple of int, or None
        What cur and cx chose, ascending.
    """

    factors: tuple[torch.Tensor, ...]
    rank: int
    relative_error: float
    squared_error: float
    squared_norm: float
    optimal_error: float | None
    singular_values: torch.Tensor
    decomposition: Decomposition = field(compare=False, repr=False)
    columns: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    weighted: Weighted | None = None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A weight that stays dense, the reason, and its spectrum where it is known."""

    reason: Reason
    singular_values: torch.Tensor | None = None
