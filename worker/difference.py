"""The difference of a weight to that of the base."""

import torch


def subtract(weight: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return W - W_base of two tensors of one shape, in float32 at least.

    That is exact where two float32 values are close. Values that are equal differ by zero, also if they are
    infinite; other infinite values, and NaN, leave what is not finite in the result.
    """
    dtype = torch.promote_types(torch.promote_types(weight.dtype, base.dtype), torch.float32)
    difference = weight.to(dtype, copy=True).sub_(base.to(dtype))
    if not bool(torch.isfinite(difference).all()):
        difference.masked_fill_(weight == base, 0)
    return difference
