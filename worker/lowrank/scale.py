"""Powers of two that bring any weight to order one, exactly."""

import math

import torch


def working_dtype(weight: torch.Tensor) -> torch.dtype:
    """Return the least dtype to compute in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def exponent_of(weight: torch.Tensor) -> int | None:
    """Return the even e with max|W| in (2^(e-2), 2^e), 0 for the zero matrix, None if W is not finite.

    An even exponent has an exact square root, so roots of singular values scale back without rounding.
    """
    low, high = (float(extreme) for extreme in torch.aminmax(weight))
    largest = max(-low, high)
    if not math.isfinite(largest):
        return None
    exponent = math.frexp(largest)[1]
    return exponent + exponent % 2


def times_power(tensor: torch.Tensor, exponent: int) -> torch.Tensor:
    """Return 2^exponent · tensor, in two steps because 2^exponent alone may be out of range."""
    half = exponent // 2
    return tensor * math.ldexp(1.0, half) * math.ldexp(1.0, exponent - half)


def scaled_copy(weight: torch.Tensor, exponent: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a fresh copy of 2^-exponent · W in `dtype`, so that no square over- or underflows."""
    copy = weight.to(dtype, copy=True)
    root = math.ldexp(1.0, -exponent // 2)
    return copy.mul_(root).mul_(root)
