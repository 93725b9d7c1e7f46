"""CX: a matrix told in k of its own columns."""

from dataclasses import dataclass

import torch

from worker.lowrank.blas import one_pool
from worker.lowrank.edge import check_rank, check_seed, check_selector, finite_exponent
from worker.lowrank.ladder import resolved
from worker.lowrank.lstsq import PseudoInverse
from worker.lowrank.scale import scaled_copy, working_dtype
from worker.lowrank.selectors import SPECTRAL, Selector, select


@dataclass(frozen=True)
class CX:
    """W ≈ c · x: c [m, k] holds the columns' exact values, x [k, n] = C⁺W; `columns` ascend."""

    columns: tuple[int, ...]
    c: torch.Tensor
    x: torch.Tensor

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Input side first, as in a ``torch.nn.Sequential``."""
        return self.x, self.c


@one_pool()
def cx(weight: torch.Tensor, rank: int, *, selector: Selector = "qdeim", seed: int = 0) -> CX:
    """Return W ≈ C X with C of k columns of W and X = C⁺W, the best X for them in the Frobenius norm.

    Its error is never under the SVD's at the same rank (Eckart and Young 1936), and for the best columns at
    most √(k + 1) times that (Deshpande and Rademacher 2006).

    Parameters
    ----------
    weight : Tensor [m, n]
        Finite; float64, float32, float16 or bfloat16.
    rank : int
        1 ≤ k ≤ min(m, n).
    selector : {"qdeim", "deim", "cpqr", "osinsky", "leverage", "linear_time"}
        How columns are chosen: see :func:`worker.lowrank.selectors.select`.
    seed : int
        ≥ 0; the chance in ``leverage`` and ``linear_time``.

    Returns
    -------
    CX
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
    >>> cx(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2).columns
    (1, 2)
    """
    check_selector(selector)
    check_seed(seed)
    weight = weight.detach()
    exponent = finite_exponent(weight)
    check_rank(rank, weight)
    scaled = scaled_copy(weight, exponent, working_dtype(weight))  # [m, n]
    decomposition = resolved(scaled, rank) if selector in SPECTRAL else None
    columns = select(selector, rank, axis="columns", matrix=scaled, decomposition=decomposition, seed=seed)
    c = take_columns(weight, columns).to(scaled.dtype)  # [m, k]
    x = PseudoInverse.of(c, exponent).solve(scaled)  # [k, n]
    return CX(columns, c, x.to(scaled.dtype))


def take_columns(weight: torch.Tensor, columns: tuple[int, ...]) -> torch.Tensor:
    """Return the chosen columns, bit for bit.

    Parameters
    ----------
    weight : Tensor [m, n]
        Any dtype.
    columns : tuple of int
        k indices, each in [0, n).

    Returns
    -------
    Tensor [m, k]
        A copy of the weight's dtype, the columns in the order given.

    Raises
    ------
    IndexError
        If an index is out of its range.
    """
    return weight.index_select(1, torch.tensor(columns, device=weight.device))
