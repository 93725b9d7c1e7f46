"""The scale of a weight: a power of two that brings it to order one exactly; which weights have one."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

# Elements of one block of rows whose squares are summed in float64.
SUM_ELEMENTS = 1 << 16
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class ScaledWeight:
    """A finite weight W [m, n] and its scale: see :func:`exponent_of`."""

    weight: torch.Tensor
    exponent: int

    @cached_property
    def matrix(self) -> torch.Tensor:
        """A = 2^-exponent · W [m, n] in the dtype to compute in."""
        return scaled_copy(self.weight, self.exponent, working_dtype(self.weight))

    @cached_property
    def energy(self) -> float:
        """‖A‖_F²."""
        return squared_norm(self.matrix)


def check_weight(weight: torch.Tensor) -> None:
    """Raise ValueError unless this is a real matrix with at least one row and column."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(
            f"a weight must be a matrix with at least one row and column, not {tuple(weight.shape)}"
        )
    if weight.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"a weight must be {names}, not {str(weight.dtype).removeprefix('torch.')}")


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


def finite_exponent(weight: torch.Tensor) -> int:
    """Return :func:`exponent_of` a weight; ValueError where that is None or it is not a real matrix."""
    check_weight(weight)
    exponent = exponent_of(weight)
    if exponent is None:
        raise ValueError("the weight holds NaN or infinite values; replace them first")
    return exponent


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
    limits = torch.finfo(dtype)
    if limits.tiny <= root * root <= limits.max:
        return copy.mul_(root * root)
    return copy.mul_(root).mul_(root)


def squared_norm(matrix: torch.Tensor) -> float:
    """Return ‖A‖_F², summed in float64; on the CPU by blocks of rows, which suit its caches.

    Parameters
    ----------
    matrix : Tensor [m, n]
        A; real and floating, of at least one element.
    """
    if matrix.device.type != "cpu":  # Each block would wait for the device.
        return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    rows = max(1, SUM_ELEMENTS // matrix.shape[1])
    norms = (
        float(torch.linalg.vector_norm(block, dtype=torch.float64)) for block in torch.split(matrix, rows)
    )
    return sum(norm**2 for norm in norms)
