"""Compute the form `spatial`: a convolution down the first side of a kernel, and one along the second."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from worker.forms.base import FormInputs, register
from worker.forms.kernels import as_kernels
from worker.lowrank import Factored, Kept, SVDMethod, factor


def rearranged(inputs: FormInputs) -> torch.Tensor:
    """Return the kernel [o, i, h, w] as a matrix [o·w, i·h]."""
    outputs, columns, height, width = inputs.layer.map_shape
    kernel = inputs.weight.reshape(outputs, columns, height, width)
    return kernel.permute(0, 3, 1, 2).reshape(outputs * width, columns * height)


def cross(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the kernel of a column and a row.

    Parameters
    ----------
    tensors : sequence of Tensor
        Columns [k, i, h, 1] and rows [o, k, 1, w].

    Returns
    -------
    Tensor [o, i·h·w]
        In their dtype.
    """
    columns, rows = tensors
    return torch.einsum("rih,orw->oihw", columns.squeeze(3), rows.squeeze(2)).flatten(1)


@register("spatial", to_dense=cross, decomposed=rearranged)
def compute_spatial(inputs: FormInputs) -> Factored | Kept:
    """Truncate the SVD of the kernel rearranged to [o·w, i·h] (Jaderberg et al. 2014; Tai et al. 2016).

    Every column of every input meets every row of every output once in that matrix, so that its best
    approximation of rank k is the best by k columns and rows.

    Returns
    -------
    Factored or Kept
        Columns [k, i, h, 1] and rows [o, k, 1, w], the singular values split evenly.
    """
    result = factor(rearranged(inputs), inputs.request(SVDMethod()), cache=inputs.cached)
    if isinstance(result, Kept):
        return result
    columns, rows = result.factors  # [k, i·h], [o·w, k]
    width = inputs.layer.kernel[1]
    rows = rows.reshape(-1, width, result.rank).transpose(1, 2)  # [o, k, w]
    return as_kernels(inputs.layer, replace(result, factors=(columns, rows)))
