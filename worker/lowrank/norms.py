"""Norms of a matrix under statistics, which bound what any rank can gain, without a decomposition."""

import math

import torch

from worker.lowrank.blas import limit_blas_threads, product
from worker.lowrank.scale import exponent_of, scaled_copy, times_power
from worker.lowrank.statistics import Statistics


@limit_blas_threads()
def weighted_norms(matrix: torch.Tensor, statistics: Statistics | None) -> tuple[float, float]:
    """Return (Σσᵢ²)^½ and (Σσᵢ⁴)^¼ over all singular values of F^½AG^½.

    With K = F·A·G·Aᵀ they are roots of tr(K) and tr(K²), so two or three products of matrices are enough.

    Parameters
    ----------
    matrix : Tensor [m, n]
        A; finite, any real floating dtype.
    statistics : Statistics or None
        F [m, m] and G [n, n], each the identity where it is missing. With both, F is taken per token, so that
        the squares are in units of the loss. With a mean μ, G - Nμμᵀ takes the place of G.

    Returns
    -------
    tuple of two floats
        The Frobenius norm and Schatten's 4-norm; 0 for the zero matrix.
    """
    exponent = exponent_of(matrix)
    assert exponent is not None
    scaled = scaled_copy(matrix, exponent, torch.float64)  # [m, n]
    outer, inner = _sides(statistics, scaled.device)
    if scaled.shape[0] > scaled.shape[1]:
        scaled, outer, inner = scaled.mT.contiguous(), inner, outer
    weighted = scaled if inner is None else product(scaled, inner)
    gram = product(weighted, scaled.mT)  # [p, p], p the shorter side
    if outer is not None:
        gram = product(outer, gram)
    squares = max(float(gram.diagonal().sum()), 0.0)
    fourth = max(float((gram * gram.mT).sum()), 0.0)
    norms = torch.tensor([math.sqrt(squares), fourth**0.25], dtype=torch.float64)
    frobenius, schatten4 = times_power(norms, exponent).tolist()
    return frobenius, schatten4


def _sides(
    statistics: Statistics | None, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return F and G in float64, or None for the identity."""
    if statistics is None:
        return None, None
    outer, inner = (
        None if gram is None else gram.to(device, torch.float64)
        for gram in (statistics.grad_gram, statistics.gram)
    )
    if inner is not None and statistics.mean is not None and statistics.count is not None:
        mean = statistics.mean.to(inner)
        inner = torch.addr(inner, mean, mean, alpha=-statistics.count)
    if outer is not None and inner is not None and statistics.count is not None:
        outer = outer / statistics.count
    return outer, inner
