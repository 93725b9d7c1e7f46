"""Norms of a matrix under statistics, which bound what any rank can gain, without a decomposition."""

import math

import torch

from worker.lowrank.blas import limit_blas_threads, product
from worker.lowrank.scale import exponent_of, scaled_copy, times_power
from worker.lowrank.statistics import Statistics
from worker.lowrank.weighting import Weighting

# By how many units of float32's rounding a norm may be too small, for each entry of the longer side.
MARGIN = 4


class WeightedNorms:
    """Measures matrices of one layer, whose statistics are prepared once.

    Parameters
    ----------
    statistics : Statistics or None
        F [m, m] and G [n, n], each the identity where it is missing. With both, F is taken per token, so that
        the squares are in units of the loss. With a mean μ, G - Nμμᵀ takes the place of G.
    device : torch.device
        Where to compute.
    """

    def __init__(self, statistics: Statistics | None, device: torch.device) -> None:
        self._weighting: Weighting | None = None
        self._inner = self._outer = None
        if statistics is not None and statistics.weighs_errors:
            weighting = Weighting.of(statistics, device, centered=True)
            self._inner = None if weighting.inputs is None else weighting.inputs.core.to(torch.float32)
            self._outer = None if weighting.outputs is None else weighting.outputs.core.to(torch.float32)
            self._weighting = weighting

    @limit_blas_threads()
    def of(self, matrix: torch.Tensor) -> tuple[float, float]:
        """Return (Σσᵢ²)^½ and (Σσᵢ⁴)^¼ over all singular values of F^½AG^½.

        With K = F·A·G·Aᵀ they are roots of tr(K) and tr(K²), so two or three products of matrices are enough.
        These are in float32, of F and G equilibrated.

        Parameters
        ----------
        matrix : Tensor [m, n]
            A; finite, any real floating dtype.

        Returns
        -------
        tuple of two floats
            The Frobenius norm, and Schatten's 4-norm with a margin that makes it an upper bound; 0 for the
            zero matrix.
        """
        exponent = exponent_of(matrix)
        assert exponent is not None
        scaled = scaled_copy(matrix, exponent, torch.float64)  # [m, n]
        if self._weighting is not None:
            self._weighting.scaled(scaled)
        size = float(scaled.abs().amax()) or 1.0
        taken = scaled.div_(size).to(torch.float32)
        del scaled
        outer, inner = self._outer, self._inner
        if taken.shape[0] > taken.shape[1]:
            taken, outer, inner = taken.mT.contiguous(), inner, outer
        weighted = taken if inner is None else product(taken, inner)
        gram = product(weighted, taken.mT)  # [p, p], p the shorter side
        squares = float(torch.sum(gram.diagonal() if outer is None else gram * outer, dtype=torch.float64))
        if outer is not None:
            gram = product(outer, gram)
        fourth = float(torch.sum(gram * gram.mT, dtype=torch.float64))
        rounding = MARGIN * max(taken.shape) * torch.finfo(torch.float32).eps
        roots = math.sqrt(max(squares, 0.0)), max(fourth, 0.0) ** 0.25 * (1 + rounding)
        norms = torch.tensor(roots, dtype=torch.float64) * size
        frobenius, schatten4 = times_power(norms, exponent).tolist()
        return frobenius, schatten4
