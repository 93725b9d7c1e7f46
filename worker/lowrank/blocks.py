"""Choosing by blocks among a few hundred candidates, so that most of the work is products of matrices."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worker.lowrank.blas import product

# Vectors that a block chooses among, and how many it chooses at most.
CANDIDATES = 256
BLOCK = 64
# So many choices of a block may fall short of the best by `YIELDING`, lest blocks of one choice come.
FEW, YIELDING = 8, 0.8
# Ties count as ties in spite of rounding.
TIED = 1 - 1e-4


def candidates(scores: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the indices of the best scores, ascending, and the best score that is not among them.

    Parameters
    ----------
    scores : Tensor [n]
        Those of -inf are out of the race; at least one is not.

    Returns
    -------
    pool : Tensor [c]
        At most 256 indices; among equal scores the first.
    limit : float
        -inf where all that are in the race are in the pool.
    """
    order = scores.argsort(descending=True, stable=True)
    running = int((scores > -torch.inf).sum())
    limit = float(scores[order[CANDIDATES]]) if running > CANDIDATES else -torch.inf
    return order[: min(CANDIDATES, running)].sort().values, limit


def slack(done: int) -> float:
    """Return the part of the limit that the next choice of a block must reach, so many being made."""
    return TIED if done >= FEW else YIELDING


def squared_norms(vectors: torch.Tensor) -> torch.Tensor:
    """Return the squared lengths of rows [n, d] as float64 [n], as exact as the dtype of the rows is."""
    norms: torch.Tensor = torch.linalg.vector_norm(vectors, dim=1)
    return norms.to(torch.float64).square_()


def products(vectors: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the inner products of rows [c, d] as float64 [c, c]."""
    return np.asarray(product(vectors, vectors.mT).to("cpu", torch.float64).numpy())


def combined(weights: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return Σ_t weights[t] · rows[t] [c], not by BLAS, whose threads would cost more than so little work."""
    return np.asarray(np.einsum("t,tc->c", weights, rows))
