"""Compute the quantised forms: the weight rounded to integers, alone or corrected by factors of low rank."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from schemas.planning.codecs import ScaledCodec
from schemas.planning.forms.quantized import Quantized
from schemas.planning.layer import LayerPlan
from worker.codecs import SCALE_DTYPES
from worker.forms.base import FormInputs, register
from worker.lowrank import (
    ErrorRank,
    Factored,
    FactorRequest,
    Grid,
    Kept,
    OutputError,
    Reason,
    RoundedMatrix,
    SVDMethod,
    factor,
    relative_error,
    round_weight,
    weighted_error,
)
from worker.lowrank.error import measure
from worker.lowrank.scale import exponent_of


def add_correction(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return Q + L·R in float32 at least.

    Parameters
    ----------
    tensors : sequence of Tensor
        Q [m, n], and where there are factors R [k, n] and L [m, k].

    Returns
    -------
    Tensor [m, n]
        The approximation of the weight.
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    rounded, *factors = (tensor.to(dtype) for tensor in tensors)
    if not factors:
        return rounded
    right, left = factors
    return torch.addmm(rounded, left, right)


def round_layer(inputs: FormInputs) -> RoundedMatrix | Kept:
    """Return Q for the weight of a layer with a quantised form, or the reason why there is none.

    Parameters
    ----------
    inputs : FormInputs
        The weight [m, n], the layer with the form, and the statistics that say which errors matter.

    Returns
    -------
    RoundedMatrix or Kept
        See :func:`worker.lowrank.round_weight`; its scales have the dtype that is stored.
    """
    if exponent_of(inputs.weight) is None:
        return Kept(reason=Reason.NOT_FINITE)
    rounded = round_weight(inputs.weight, _grid(inputs.layer), inputs.statistics)
    return Kept(reason=Reason.OUT_OF_RANGE) if rounded is None else rounded


def residual_of(weight: torch.Tensor, rounded: RoundedMatrix) -> torch.Tensor:
    """Return W - Q [m, n] in float32 at least: what factors correct."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(dtype) - rounded.dense().to(dtype)


def rounded_off(inputs: FormInputs) -> torch.Tensor | Kept:
    """Return W - Q [m, n], or the reason why there is no Q."""
    rounded = round_layer(inputs)
    return rounded if isinstance(rounded, Kept) else residual_of(inputs.weight, rounded)


@register("int8", to_dense=add_correction, decomposed=rounded_off)
@register("int4", to_dense=add_correction, decomposed=rounded_off)
@register("int3", to_dense=add_correction, decomposed=rounded_off)
def compute_rounded(inputs: FormInputs) -> Factored | Kept:
    """Round a weight with feedback of the error (Frantar et al. 2022) where there is a Gram matrix.

    Returns
    -------
    Factored or Kept
        Of rank 0: no factors, and Q in `rounded`.
    """
    rounded = round_layer(inputs)
    return rounded if isinstance(rounded, Kept) else _measured(inputs, rounded)


@register("int8+svd", to_dense=add_correction, decomposed=rounded_off)
@register("int4+svd", to_dense=add_correction, decomposed=rounded_off)
@register("int3+svd", to_dense=add_correction, decomposed=rounded_off)
def compute_corrected(inputs: FormInputs) -> Factored | Kept:
    """Round a weight, and approximate W - Q by a truncated SVD, in the norm that `svd` minimizes.

    This is the exact solution of QERA (Zhang et al. 2024) for a given Q. Of the rank rules, `energy` speaks
    of the energy of W - Q, and `error` of that of W.

    Returns
    -------
    Factored or Kept
        Factors R [k, n] and L [m, k], and Q in `rounded`.
    """
    rounded = round_layer(inputs)
    if isinstance(rounded, Kept):
        return rounded
    request = _relative_to_weight(inputs, rounded)
    corrected = factor(residual_of(inputs.weight, rounded), request, cache=inputs.cached)
    if isinstance(corrected, Kept):
        return corrected
    plain = _measured(inputs, rounded)
    if isinstance(plain, Kept):
        return plain
    return replace(
        plain,
        factors=corrected.factors,
        rank=corrected.rank,
        singular_values=corrected.singular_values,
        decomposition=corrected.decomposition,
    )


def _grid(layer: LayerPlan) -> Grid:
    form = layer.form
    assert isinstance(form, Quantized)
    codec = form.codec.for_weight(layer.dtype)
    assert isinstance(codec, ScaledCodec)
    return Grid(form.quantizer.bits, form.quantizer.group, SCALE_DTYPES[codec.scale])


def _relative_to_weight(inputs: FormInputs, rounded: RoundedMatrix) -> FactorRequest:
    """Return the request for factors of W - Q; a limit on the error is relative to W and not to W - Q."""
    request = inputs.request(SVDMethod())
    if not isinstance(request.rank, ErrorRank):
        return request
    weight, statistics, dense = inputs.weight, inputs.statistics, (rounded.dense(),)
    if statistics is None or not statistics.weighs_errors:
        lost = relative_error(weight, dense)
    else:
        weighted = weighted_error(weight, dense, statistics, centered=inputs.correct_bias)
        lost = weighted.objective.relative
    if lost <= request.rank.epsilon:
        return replace(request, rank=request.aligned(1))
    return replace(request, rank=ErrorRank(request.rank.epsilon / lost))


def _measured(inputs: FormInputs, rounded: RoundedMatrix) -> Factored | Kept:
    """Return Q and its errors."""
    exponent, dense = exponent_of(inputs.weight), (rounded.dense(),)
    assert exponent is not None
    residual, output = measure(inputs.weight, dense, exponent), None
    if not math.isfinite(residual.squared_norm):
        return Kept(reason=Reason.OUT_OF_RANGE)
    statistics, loss, shift = inputs.statistics, None, None
    if statistics is not None and statistics.weighs_errors:
        weighted = weighted_error(inputs.weight, dense, statistics, centered=inputs.correct_bias)
        found, loss, shift = weighted.outputs, weighted.loss, weighted.shift
        if not math.isfinite(loss or 0.0):
            return Kept(reason=Reason.OUT_OF_RANGE)
        if found is not None:
            output = OutputError(
                relative_error=found.relative,
                squared_error=found.squared_error,
                squared_norm=found.squared_norm,
                optimal_error=None,
            )
    return Factored(
        factors=(),
        rank=0,
        relative_error=residual.relative,
        squared_error=residual.squared_error,
        squared_norm=residual.squared_norm,
        optimal_error=None,
        output_error=output,
        predicted_loss=loss,
        bias_shift=shift,
        singular_values=None,
        decomposition=None,
        rounded=rounded,
    )
