"""Factors in the dtype they are stored in, and what the cast costs."""

import math
from collections.abc import Callable

import torch

from worker.lowrank.residual import Residual

Factors = tuple[torch.Tensor, ...]

# A cast that raises the error by more than this factor calls for tamer factors.
ROUNDING_SEEN = 1.02


def fits(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Say whether the tensor survives the cast: no overflow, and not all of it under the normal range."""
    largest = float(tensor.abs().amax())
    limits = torch.finfo(dtype)
    return largest <= limits.max and (largest >= limits.tiny or largest == 0 or tensor.dtype == dtype)


def stored(factors: Factors, dtype: torch.dtype) -> Factors | None:
    """Return contiguous factors in `dtype`, or None where it cannot hold them."""
    if not all(fits(factor, dtype) for factor in factors):
        return None
    return tuple(factor.to(dtype).contiguous() for factor in factors)


def least_rounded(
    fit: Callable[[float], Factors], dtype: torch.dtype, measured: Callable[[Factors], Residual]
) -> tuple[Factors, Residual] | None:
    """Return the stored factors of least measured error, or None where `dtype` can hold none.

    Nearly dependent columns make the fitted factor large, and rounding large numbers to a narrow dtype may
    lose more than they gain; `fit(cutoff)` leaves out the directions that are weaker than `cutoff`. Cutoffs
    above 0 are tried only where rounding is seen.
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
