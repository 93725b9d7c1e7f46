"""Compute the form `separable`: a few filters for each input, and a mix of all of them."""

from collections.abc import Sequence

import torch

from worker.forms.base import FormInputs, register
from worker.forms.kernels import compute_kernel, scaled_kernel
from worker.lowrank import Factored, Kept
from worker.lowrank.scale import times_power
from worker.lowrank.separable import Separable, SeparableMethod


def join_separable(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the kernel of some filters for each input, and a mix of all.

    Parameters
    ----------
    tensors : sequence of Tensor
        [i, k, K] and [o, i, k].

    Returns
    -------
    Tensor [o, i·K]
        In their dtype.
    """
    filters, mix = tensors
    return torch.einsum("ikn,oik->oin", filters, mix).flatten(1)


def separable_spectrum(inputs: FormInputs) -> torch.Tensor:
    """Return values whose tails are the errors at each rank."""
    kernel, exponent = scaled_kernel(inputs)
    return times_power(Separable(kernel).spectrum, exponent)


@register("separable", to_dense=join_separable, spectrum=separable_spectrum)
def compute_separable(inputs: FormInputs) -> Factored | Kept:
    """Approximate the slice of each input by its own truncated SVD (Guo et al. 2018).

    Returns
    -------
    Factored or Kept
        Filters [i, k, K] for each input, and their mix [o, i, k].
    """
    return compute_kernel(inputs, SeparableMethod())
