"""The nuclear norm of a matrix, and its gradient, from the eigenvalues of the smaller Gram matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

# The square root of an eigenvalue of a Gram matrix in float64 is right down to about this share of the
# largest. Below it there is no telling a singular value from zero, where the smallest subgradient is 0.
RESOLVED = 1e-7


class _NuclearNorm(torch.autograd.Function):
    """The sum of the singular values of W = U·S·Vᵀ [m, n], m ≥ n; the subgradient is U·Vᵀ = W·V·S⁻¹·Vᵀ."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor) -> Tensor:
        exact = weight.double()
        eigenvalues, vectors = torch.linalg.eigh(exact.mT @ exact)
        values = eigenvalues.clamp(min=0).sqrt()
        positive = values > RESOLVED * values[-1]
        inverse = torch.where(positive, values.reciprocal(), 0)
        ctx.save_for_backward(weight, (vectors * inverse) @ vectors.mT)
        norm: Tensor = values.sum().to(weight.dtype)
        return norm

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        weight, root = ctx.saved_tensors
        slope: Tensor = (weight.double() @ root).to(weight.dtype)
        return gradient * slope


def nuclear_norm(weight: Tensor) -> Tensor:
    """Return the sum of the singular values of a matrix [m, n], differentiable once.

    One product and the eigenvalues of a matrix of min(m, n)² in float64 take the place of a decomposition
    of the whole. The gradient is the subgradient of least norm, which is 0 where a singular value is 0, so
    equal and vanishing singular values do no harm.
    """
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.mT
    norm: Tensor = _NuclearNorm.apply(tall)  # type: ignore[no-untyped-call]
    return norm
