"""How rounding carries the errors of columns on to those that are rounded after them."""

from dataclasses import dataclass
from typing import Self

import torch

from worker.lowrank.error import row_blocks

# Of the mean of G's diagonal: what is added to the diagonal before the error is carried on.
RIDGE = 0.01


@dataclass(frozen=True, eq=False)
class Feedback:
    """H = G + 0.01·mean(diag G)·I, its columns in an order, as L D Lᵀ with a unit lower triangular L.

    Where column j of Ŵ is that of T = W + (W - Ŵ)(L - I), rounded, tr((W - Ŵ)H(W - Ŵ)ᵀ) = ‖(T - Ŵ)D^½‖². A
    column then depends on those behind it in the order alone, so they are rounded from the last to the first.
    This is the rounding of OBQ and GPTQ (Frantar et al. 2022) without the inverse of H, as in LDLQ (Chee et
    al. 2023, whose theorem 6 says that both are the same).

    Attributes
    ----------
    order : Tensor [n], int64
        The column at each place. The largest diagonal entries of H are last: their columns are rounded first,
        while most others are left that can make up for their errors.
    lower : Tensor [n, n], float32
        L, of the columns in this order.
    importance : Tensor [n], float32
        D, each entry at the place that its column has in W.
    """

    order: torch.Tensor
    lower: torch.Tensor
    importance: torch.Tensor

    @classmethod
    def of(cls, gram: torch.Tensor, center: tuple[torch.Tensor, float] | None = None) -> Self | None:
        """Factor H.

        Parameters
        ----------
        gram : Tensor [n, n]
            G; symmetric, float64 or float32.
        center : mean [n] and count, or None
            μ and N: G - Nμμᵀ takes the place of G.

        Returns
        -------
        Feedback or None
            None where G is zero. The work is done in float32, which the ridge allows; in float64 where that
            fails. The ridge is raised tenfold as often as rounding in G needs it.
        """
        mean = None if center is None else center[0].to(gram.device, torch.float64)
        count = 0.0 if center is None else center[1]
        diagonal = gram.diagonal().to(torch.float64)
        if mean is not None:
            diagonal = diagonal - count * mean.square()
        diagonal = diagonal.clamp_min(0)
        size = float(diagonal.mean())
        if size <= 0:
            return None
        order = torch.argsort(diagonal, stable=True)
        diagonal = (diagonal[order] / size).to(torch.float32)
        found = gram.new_empty(gram.shape, dtype=torch.float32)
        mean = None if mean is None else mean[order]
        for rows in row_blocks(*gram.shape):
            block = gram[order[rows]].index_select(1, order).to(torch.float64)
            if mean is not None:
                block.addr_(mean[rows], mean, alpha=-count)
            found[rows] = block.div_(size)
        lower = _cholesky(found, diagonal)
        roots = lower.diagonal().clone()
        importance = torch.empty_like(roots)
        importance[order] = roots.square()
        return cls(order, lower.div_(roots), importance)


def _cholesky(gram: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """Return the lower factor of G + δI in float32, with the given diagonal in place of that of G."""
    ridge = RIDGE
    while True:
        gram.diagonal().copy_(diagonal).add_(ridge)
        for dtype in (torch.float32, torch.float64):
            found = torch.linalg.cholesky_ex(gram.to(dtype))
            lower: torch.Tensor = found.L
            if not int(found.info) and bool(lower.diagonal().isfinite().all()):
                return lower.to(torch.float32)
        ridge *= 10
