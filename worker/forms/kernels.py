"""Factors as kernels of convolutions, and the kernel that they stand for."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from schemas.planning.layer import LayerPlan
from worker.lowrank import Factored


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
