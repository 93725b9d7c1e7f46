"""Compute the form `tucker2`: a smaller kernel between two mixes of channels."""

from collections.abc import Sequence
from functools import partial

import torch

from schemas.planning.forms.tucker2 import channel_ranks
from worker.forms.base import FormInputs, register
from worker.forms.kernels import compute_kernel, scaled_kernel
from worker.lowrank import Factored, Kept
from worker.lowrank.scale import times_power
from worker.lowrank.tucker import Tucker2, Tucker2Method


def join_tucker2(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the kernel of a mix of inputs, a smaller kernel and a mix of its outputs.

    Parameters
    ----------
    tensors : sequence of Tensor
        [r, i, 1], [s, r, K] and [o, s, 1].

    Returns
    -------
    Tensor [o, i·K]
        In their dtype.
    """
    first, core, last = tensors
    return torch.einsum("ri,srk,os->oik", first.flatten(1), core, last.flatten(1)).flatten(1)


def tucker2_spectrum(inputs: FormInputs) -> torch.Tensor:
    """Return values whose tails are the errors of the truncated higher-order SVD at each rank."""
    kernel, exponent = scaled_kernel(inputs)
    ranks = partial(channel_ranks, inputs.layer.map_shape)
    return times_power(Tucker2(kernel, ranks).estimate, exponent)


@register("tucker2", to_dense=join_tucker2, spectrum=tucker2_spectrum)
def compute_tucker2(inputs: FormInputs) -> Factored | Kept:
    """Decompose a kernel in its channel modes (Tucker 1966; Kim et al. 2016).

    Returns
    -------
    Factored or Kept
        The mix of inputs [r, i, 1], the smaller kernel [s, r, K], the mix of its outputs [o, s, 1].
    """
    return compute_kernel(inputs, Tucker2Method(partial(channel_ranks, inputs.layer.map_shape)))
