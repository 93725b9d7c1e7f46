"""Compute the form `cp`: a mix of the inputs, one filter for each channel in between, and a mix of these."""

from collections.abc import Sequence

import torch

from worker.forms.base import FormInputs, register
from worker.forms.kernels import compute_kernel, scaled_kernel
from worker.lowrank import Factored, Kept
from worker.lowrank.cp import CP, CPMethod
from worker.lowrank.scale import times_power


def join_cp(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the kernel of a mix of inputs, a filter for each channel in between, and a mix of these.

    Parameters
    ----------
    tensors : sequence of Tensor
        [k, i, 1], [k, 1, K] and [o, k, 1].

    Returns
    -------
    Tensor [o, i·K]
        In their dtype.
    """
    first, filters, last = (tensor.flatten(1) for tensor in tensors)
    return torch.einsum("ri,rk,or->oik", first, filters, last).flatten(1)


def cp_spectrum(inputs: FormInputs) -> torch.Tensor:
    """Return the singular values of all slices, whose tails are errors that the alternation begins with."""
    kernel, exponent = scaled_kernel(inputs)
    return times_power(CP(kernel, inputs.seed).estimate, exponent)


@register("cp", to_dense=join_cp, spectrum=cp_spectrum)
def compute_cp(inputs: FormInputs) -> Factored | Kept:
    """Decompose a kernel into a sum of products of vectors (Hitchcock 1927; Lebedev et al. 2015).

    Returns
    -------
    Factored or Kept
        The mix of inputs [k, i, 1], the filters [k, 1, K] and the mix of outputs [o, k, 1].
    """
    return compute_kernel(inputs, CPMethod())
