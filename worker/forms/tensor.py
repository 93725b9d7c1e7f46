"""Compute the forms of convolutions whose factors no single matrix gives: `tucker2`, `cp` and `separable`.

All sides of a kernel are one here, of K elements.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch

from schemas.planning.forms.tucker2 import channel_ranks
from worker.forms.base import FormInputs, register
from worker.lowrank import Factored, Kept, SVDMethod
from worker.lowrank.cp import CP, CPMethod
from worker.lowrank.kernel import KernelMethod, factor_kernel
from worker.lowrank.scale import exponent_of, times_power
from worker.lowrank.separable import Separable, SeparableMethod
from worker.lowrank.tucker import Tucker2, Tucker2Method


def _compute(inputs: FormInputs, method: KernelMethod) -> Factored | Kept:
    request = inputs.request(SVDMethod())
    return factor_kernel(inputs.weight, math.prod(inputs.layer.kernel), request, method)


def _kernel(inputs: FormInputs) -> tuple[torch.Tensor, int]:
    """Return the kernel [o, i, K] in float64, and its scale, a power of two that it is divided by."""
    exponent = exponent_of(inputs.weight) or 0
    scaled = times_power(inputs.weight.double(), -exponent)
    return scaled.reshape(len(scaled), -1, math.prod(inputs.layer.kernel)), exponent


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
    kernel, exponent = _kernel(inputs)
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
    return _compute(inputs, Tucker2Method(partial(channel_ranks, inputs.layer.map_shape)))


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
    kernel, exponent = _kernel(inputs)
    return times_power(CP(kernel, inputs.seed).estimate, exponent)


@register("cp", to_dense=join_cp, spectrum=cp_spectrum)
def compute_cp(inputs: FormInputs) -> Factored | Kept:
    """Decompose a kernel into a sum of products of vectors (Hitchcock 1927; Lebedev et al. 2015).

    Returns
    -------
    Factored or Kept
        The mix of inputs [k, i, 1], the filters [k, 1, K] and the mix of outputs [o, k, 1].
    """
    return _compute(inputs, CPMethod())


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
    kernel, exponent = _kernel(inputs)
    return times_power(Separable(kernel).spectrum, exponent)


@register("separable", to_dense=join_separable, spectrum=separable_spectrum)
def compute_separable(inputs: FormInputs) -> Factored | Kept:
    """Approximate the slice of each input by its own truncated SVD (Guo et al. 2018).

    Returns
    -------
    Factored or Kept
        Filters [i, k, K] for each input, and their mix [o, i, k].
    """
    return _compute(inputs, SeparableMethod())
