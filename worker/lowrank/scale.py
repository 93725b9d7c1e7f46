"""Powers of two that bring any weight to order one, exactly."""

import math

import torch


def working_dtype(weight: torch.Tensor) -> torch.dtype:
    """Return the least dtype to compute in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def exponent_of(weight: torch.Tensor) -> int | None:
    """Return the scale of a weight: the even e with max|W| in [2^(e-2), 2^e).

    2^e of an even e has an exact square root, so roots of singular values scale back without rounding.

    Parameters
    ----------
    weight : Tensor [m, n]
        Real and floating, of at least one element.

    Returns
    -------
    int or None
        e, in [-1072, 1024]; 0 for the zero matrix, None if W holds NaN or infinite values.
    """
    low, high = (float(extreme) for extreme in torch.aminmax(weight))
    largest = max(-low, high)
    if not math.isfinite(largest):
        return None
    exponent = math.frexp(largest)[1]
    return exponent + exponent % 2


def times_power(tensor: torch.Tensor, exponent: int) -> torch.Tensor:
    """Return 2^exponent · tensor, in two steps because 2^exponent alone may be out of range.

    Parameters
    ----------
    tensor : Tensor of any shape
        Real and floating.
    exponent : int
        At most 2046.

    Returns
    -------
    Tensor of the same shape and dtype
        Exact, except where the dtype's range ends: there infinite, or rounded as subnormals are.

    Raises
    ------
    OverflowError
        If the exponent is larger.
    """
    half = exponent // 2
    return tensor * math.ldexp(1.0, half) * math.ldexp(1.0, exponent - half)


def scaled_copy(weight: torch.Tensor, exponent: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a fresh copy of 2^-exponent · W, so that no square over- or underflows.

    Parameters
    ----------
    weight : Tensor [m, n]
        W; real and floating.
    exponent : int
        Its scale by :func:`exponent_of`, even and in [-1072, 1024].
    dtype : torch.dtype
        At least as wide as W's; float64 or float32.

    Returns
    -------
    Tensor [m, n]
        Entries of magnitude under 1, the largest at least 1/4; all zero for the zero matrix.
    """
    copy = weight.to(dtype, copy=True)
    root = math.ldexp(1.0, -exponent // 2)
    return copy.mul_(root).mul_(root)
