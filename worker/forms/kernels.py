"""What the forms of convolutions share: kernels in, kernels out.

In the forms whose factors no single matrix gives, all sides of a kernel are one, of K elements.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from schemas.planning.layer import LayerPlan
from worker.forms.base import FormInputs
from worker.lowrank import Factored, Kept, SVDMethod
from worker.lowrank.kernel import KernelMethod, factor_kernel
from worker.lowrank.scale import exponent_of, times_power


def as_kernels(layer: LayerPlan, result: Factored) -> Factored:
    """Return a result whose factors have the shapes that its form stores."""
    stored = layer.form.stored_matrices(layer.map_shape, result.rank)
    pairs = zip(result.factors, stored, strict=True)
    return replace(result, factors=tuple(each.reshape(matrix.shape).contiguous() for each, matrix in pairs))


def mix_filters(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the kernel of filters and their mix.

    Parameters
    ----------
    tensors : sequence of Tensor
        Filters [k, i, *kernel] and the mix [o, k, 1, …].

    Returns
    -------
    Tensor [o, i·kernel]
        In their dtype.
    """
    filters, mix = tensors
    return mix.flatten(1) @ filters.flatten(1)


def compute_kernel(inputs: FormInputs, method: KernelMethod) -> Factored | Kept:
    """Factor a kernel by a method; the request's own, which needs one matrix, is not used."""
    request = inputs.request(SVDMethod())
    return factor_kernel(inputs.weight, math.prod(inputs.layer.kernel), request, method)


def scaled_kernel(inputs: FormInputs) -> tuple[torch.Tensor, int]:
    """Return the kernel [o, i, K] in float64, and the exponent of the power of two that it is divided by."""
    exponent = exponent_of(inputs.weight) or 0
    scaled = times_power(inputs.weight.double(), -exponent)
    return scaled.reshape(len(scaled), -1, math.prod(inputs.layer.kernel)), exponent
