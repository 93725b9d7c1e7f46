"""Fewer neurons in an MLP: which to keep, and the weight behind them that makes up for the others.

An MLP computes W_d·z(x), where each entry of z comes from one row of each weight before it (`up`, and
`gate` where there is one) by a function of single entries. So rows may go, and what is left is such an MLP.
This is type I of MoDeGPT (Lin et al. 2024, arXiv 2408.09632), here with another choice of neurons.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from worker.lowrank.blas import limit_blas_threads, product, subtract_product
from worker.lowrank.error import Residual, measure
from worker.lowrank.scale import exponent_of, scaled_copy, times_power
from worker.lowrank.statistics import Statistics
from worker.lowrank.types import Kept, Reason
from worker.lowrank.weighting import weighted_error

# Relative to the mean of the diagonal. It draws the fit towards the columns that are there already, which
# matters where the calibration has few tokens (docs/decisions/0028-neurons-go-one-by-one.md).
RIDGE = 1e-2
# How many neurons a round considers, and how many may go in it.
POOL = 256
ROUND = 64


@dataclass(frozen=True, kw_only=True)
class NarrowedWeight:
    """The weight W [m, n] behind n neurons, fitted to k of them.

    Attributes
    ----------
    neurons : tuple of int
        The k neurons that stay, ascending.
    weight : Tensor [m, k]
        Ŵ, in the dtype of W.
    shift : Tensor [m] or None
        (W - Ŵ)μ in float64, what is to be added to the bias; None where the bias stays.
    weight_error : Residual
        ‖W - Ŵ‖_F² and ‖W‖_F², the columns of other neurons in Ŵ being zero.
    output_error : Residual
        ‖(W - Ŵ)Z‖_F² and ‖WZ‖_F² for the outputs Z of the neurons, less their mean where the bias shifts.
    predicted_loss : float or None
        tr((W - Ŵ)ᵀF(W - Ŵ)G)/N, G being ZZᵀ in the same sense; None without F.
    """

    neurons: tuple[int, ...]
    weight: torch.Tensor
    shift: torch.Tensor | None
    weight_error: Residual
    output_error: Residual
    predicted_loss: float | None


@limit_blas_threads()
def narrow(weight: torch.Tensor, count: int, statistics: Statistics) -> NarrowedWeight | Kept:
    """Choose the neurons that stay and fit the weight behind them to the outputs of all.

    Ŵ = W·G[:, S]·G[S, S]⁻¹ has the least error of the outputs for the neurons S, with and without F.

    Parameters
    ----------
    weight : Tensor [m, n]
        W, any real floating dtype.
    count : int
        k, 1 ≤ k ≤ n.
    statistics : Statistics
        Of W, with a Gram matrix in which :func:`worker.lowrank.gram_fault` finds no fault. F, if given, says
        which outputs matter. With mean and count the bias is to take over the mean of what is lost.

    Returns
    -------
    NarrowedWeight or Kept
        The latter where W is not finite, where no fit was found, or where its dtype cannot hold it.
    """
    exponent = exponent_of(weight)
    if exponent is None:
        return Kept(reason=Reason.NOT_FINITE)
    assert statistics.gram is not None
    scaled = scaled_copy(weight, exponent, torch.float64)
    try:
        ridged = _ridged(_centred(statistics).to(weight.device))
        neurons = keep_neurons(scaled, ridged, count, grad_gram=statistics.grad_gram)
        fitted = times_power(_fit(scaled, ridged, neurons), exponent).to(weight.dtype)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # Public, but re-exported without saying so.
        return Kept(reason=Reason.NOT_CONVERGED)
    if not bool(torch.isfinite(fitted).all()):
        return Kept(reason=Reason.OUT_OF_RANGE)
    whole = torch.zeros_like(weight)
    whole[:, neurons] = fitted
    del scaled, ridged
    weighted = weighted_error(weight, (whole,), statistics, centered=True)
    assert weighted.outputs is not None
    if not (math.isfinite(weighted.outputs.squared_norm) and math.isfinite(weighted.loss or 0.0)):
        return Kept(reason=Reason.OUT_OF_RANGE)
    return NarrowedWeight(
        neurons=tuple(neurons.tolist()),
        weight=fitted,
        shift=weighted.shift,
        weight_error=measure(weight, (whole,), exponent),
        output_error=weighted.outputs,
        predicted_loss=weighted.loss,
    )


def keep_neurons(
    weight: torch.Tensor, gram: torch.Tensor, count: int, *, grad_gram: torch.Tensor | None = None
) -> torch.Tensor:
    """Choose the neurons that stay: one after the other goes that costs least once the rest is fitted again.

    Without the neuron j the error grows by ‖F^½w_j‖²/(G⁻¹)_jj, w_j being its column in the fit so far
    (Hassibi and Stork 1993, Optimal Brain Surgeon; for columns of all rows at once). Each round lets go up to
    64 of the 256 neurons that cost least, one by one while none outside was cheaper as the round began, and
    then fits the rest anew by products of matrices.

    Parameters
    ----------
    weight : Tensor [m, n]
        W; float64.
    gram : Tensor [n, n]
        G, positive definite; float64.
    count : int
        k, 1 ≤ k ≤ n.
    grad_gram : Tensor [m, m] or None
        F; None for the identity.

    Returns
    -------
    Tensor [k]
        The neurons, ascending.

    Raises
    ------
    LinAlgError
        torch's, if a matrix is not positive definite.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram)).contiguous()  # [n, n]
    images = weight.clone(memory_format=torch.contiguous_format)  # [m, n]
    if grad_gram is not None:
        root = torch.linalg.cholesky(_ridged(grad_gram.to(weight.device)))
        images = product(root.mT.contiguous(), images)
    gone = torch.zeros(len(gram), dtype=torch.bool, device=gram.device)
    left = len(gram) - count
    while left > 0:
        costs = images.square().sum(0) / inverse.diagonal()  # [n]
        costs[gone] = torch.inf
        order = costs.argsort(stable=True)[: int((~gone).sum())]
        pool = order[:POOL]
        limit = float(costs[order[POOL]]) if len(order) > POOL else math.inf
        leaving = pool[_cheapest(images[:, pool], inverse[pool][:, pool], limit, most=min(ROUND, left))]
        _let_go(images, inverse, leaving)
        gone[leaving] = True
        left -= len(leaving)
    return (~gone).nonzero()[:, 0]


def _cheapest(images: torch.Tensor, inverse: torch.Tensor, limit: float, *, most: int) -> list[int]:
    """Return the positions of neurons that go one by one, by their columns [m, c] and part of G⁻¹ [c, c]."""
    squares: npt.NDArray[np.float64] = product(images.mT.contiguous(), images).cpu().numpy()  # [c, c]
    inner = inverse.cpu().numpy().copy()
    chosen: list[int] = []
    while len(chosen) < most:
        with np.errstate(divide="ignore", invalid="ignore"):
            costs = squares.diagonal() / inner.diagonal()
        costs[chosen] = np.inf
        best = int(np.nan_to_num(costs, nan=np.inf).argmin())
        if chosen and not costs[best] <= limit:
            break
        share = inner[best] / inner[best, best]  # [c]
        crossed = np.outer(share, squares[best])
        squares += np.outer(share, share) * squares[best, best] - crossed - crossed.T
        inner -= np.outer(share, inner[best].copy())
        chosen.append(best)
    return chosen


def _let_go(images: torch.Tensor, inverse: torch.Tensor, leaving: torch.Tensor) -> None:
    """Fit the columns [m, n] without some neurons, and take these out of G⁻¹ [n, n], both in place."""
    rows = inverse[leaving]  # [b, n]
    shares = torch.cholesky_solve(rows, torch.linalg.cholesky(rows[:, leaving])).contiguous()  # [b, n]
    subtract_product(images, images[:, leaving].contiguous(), shares)
    subtract_product(inverse, rows.mT.contiguous(), shares)


def _fit(weight: torch.Tensor, gram: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
    """Return W·G[:, S]·G[S, S]⁻¹ [m, k]."""
    chosen = gram[neurons]  # [k, n]
    root = torch.linalg.cholesky(chosen[:, neurons])
    return torch.cholesky_solve(product(chosen, weight.mT.contiguous()), root).mT.contiguous()


def _centred(statistics: Statistics) -> torch.Tensor:
    """Return G in float64, less N·μμᵀ where there is a mean."""
    assert statistics.gram is not None
    gram = statistics.gram.to(torch.float64, copy=True)
    if statistics.mean is not None and statistics.count is not None:
        mean = statistics.mean.to(gram)
        gram.addr_(mean, mean, alpha=-statistics.count)
        # Rounding of the sums must not leave a variance below zero.
        gram.diagonal().clamp_min_(0)
    return gram


def _ridged(matrix: torch.Tensor) -> torch.Tensor:
    """Return a positive definite matrix with a diagonal of 1 on average, in float64."""
    scale = float(matrix.diagonal().to(torch.float64).mean()) or 1.0
    ridged = matrix.to(torch.float64, copy=True).div_(scale)
    ridged.diagonal().add_(RIDGE)
    return ridged
