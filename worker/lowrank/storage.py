"""Factors in the dtype they are stored in, and what the cast costs."""

import math
from collections.abc import Callable

import torch

from worker.lowrank.residual import Residual

Factors = tuple[torch.Tensor, ...]

# A cast that raises the error by more than this factor calls for tamer factors.
ROUNDING_SEEN = 1.02


def fits(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Say whether the tensor survives the cast: no overflow, and not all of it under the normal range.

    Parameters
    ----------
    tensor : Tensor of any shape
        Real and floating, of at least one element; infinite and NaN entries survive no cast.
    dtype : torch.dtype
        A real floating dtype.

    Returns
    -------
    bool
        Always True for finite entries where the dtype is the tensor's own.
    """
    low, high = (float(extreme) for extreme in torch.aminmax(tensor))
    largest = max(-low, high)
    limits = torch.finfo(dtype)
    return largest <= limits.max and (largest >= limits.tiny or largest == 0 or tensor.dtype == dtype)


def stored(factors: Factors, dtype: torch.dtype) -> Factors | None:
    """Return the factors cast to a dtype.

    Parameters
    ----------
    factors : tuple of Tensor, each of any shape
        Real and floating.
    dtype : torch.dtype
        A real floating dtype.

    Returns
    -------
    tuple of Tensor, or None
        The same shapes in `dtype`, contiguous; None where one of them does not survive (see :func:`fits`).
    """
    if not all(fits(factor, dtype) for factor in factors):
        return None
    return tuple(factor.to(dtype).contiguous() for factor in factors)


def least_rounded(
    fit: Callable[[float], Factors], dtype: torch.dtype, measured: Callable[[Factors], Residual]
) -> tuple[Factors, Residual] | None:
    """Return the stored factors of least measured error, or None where `dtype` can hold none.

    Nearly dependent columns make the fitted factor large, and rounding large numbers to a narrow dtype may
    lose more than they gain. Cutoffs above 0 are tried only where rounding is seen.

    Parameters
    ----------
    fit : callable
        From a cutoff in [0, 1) to the factors of one weight [m, n], input side first: ``(right [k, n],
        left [m, k])`` or ``(r [k, n], u [k, k], c [m, k])``. It leaves out directions weaker than `cutoff`
        times the strongest.
    dtype : torch.dtype
        Of the stored factors; real and floating.
    measured : callable
        From factors to their error.

    Returns
    -------
    factors, residual
        The factors of the shapes that `fit` gives, contiguous in `dtype`, and their measured error; None
        where `dtype` can hold the factors of no cutoff.
    """
    exact = fit(0.0)
    best = _judged(stored(exact, dtype), measured)
    if best is not None and best[1].relative <= ROUNDING_SEEN * measured(exact).relative:
        return best
    eps = torch.finfo(dtype).eps
    for cutoff in (eps, math.sqrt(eps), eps**0.25):
        tamer = _judged(stored(fit(cutoff), dtype), measured)
        if tamer is not None and (best is None or tamer[1].relative < best[1].relative):
            best = tamer
    return best


def _judged(
    factors: Factors | None, measured: Callable[[Factors], Residual]
) -> tuple[Factors, Residual] | None:
    return None if factors is None else (factors, measured(factors))
