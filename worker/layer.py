"""Factor one weight: compute its form, encode the tensors to store, and report the errors."""

import math
import time
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from schemas.planning.forms import StoredMatrix
from schemas.planning.layer import LayerPlan
from schemas.report import KeptReason, LayerReport
from worker.codecs import INTEGER_IMPLEMENTATIONS, CodecImplementation, implementation_of
from worker.context import LayerInputs
from worker.difference import subtract
from worker.forms import FORM_IMPLEMENTATIONS, FormInputs
from worker.lowrank import (
    Factored,
    Kept,
    OutputError,
    Reason,
    RoundedMatrix,
    WeightedError,
    relative_error,
    weighted_error,
)
from worker.resize import resize_lora
from worker.work_plan import LayerTask


class LayerOutcome(BaseModel):
    """The result of a layer without its tensors: everything that the report of the job needs."""

    model_config = ConfigDict(frozen=True)

    report: LayerReport
    squared_error: float
    squared_norm: float
    squared_output_error: float = 0.0
    squared_output_norm: float = 0.0

    @property
    def rank(self) -> int | None:
        """The rank, or None if the layer is kept dense."""
        return self.report.rank


def kept_outcome(task: LayerTask, reason: KeptReason | None) -> LayerOutcome:
    """Return the outcome of a layer that stays dense; without a reason, the caller fills in the rest."""
    return _outcome(task, None, None, reason=reason, seconds=0.0)


def factor_layer(
    task: LayerTask, inputs: LayerInputs, *, seed: int, device: torch.device
) -> tuple[LayerOutcome, tuple[torch.Tensor, ...]]:
    """Replace a weight as planned; a numerical failure is a layer that is kept dense, with the reason.

    Parameters
    ----------
    task
        The layer and its plan.
    inputs
        The weight, its statistics and cached decompositions.
    seed
        Seed of the sampling selectors and of the random Krylov space.
    device
        Where the numerics run.

    Returns
    -------
    outcome, tensors
        The tensors in the order of `LayerPlan.stored_tensors`, then the bias if it is corrected, on the CPU;
        none for a kept layer.
    """
    begun = time.perf_counter()
    layer, codec = task.layer, implementation_of(task.layer.codec)
    if is_unchanged(task, inputs):
        return kept_outcome(task, "unchanged"), ()
    weight = inputs.weight.to(device)
    # Factors that will be multiplied are not rounded to the storage dtype first.
    dtype = torch.promote_types(weight.dtype, torch.float32) if layer.dense_layout else codec.dtype
    form_inputs = FormInputs(
        layer=layer,
        weight=weight,
        statistics=inputs.statistics_on(device),
        correct_bias=layer.corrects_bias,
        dtype=dtype,
        seed=seed,
        num_vectors=layer.num_vectors if inputs.cached else None,
        cached=inputs.cached,
    )
    tensors: tuple[torch.Tensor, ...] = ()
    result: Factored | Kept
    if inputs.product is not None:
        result, tensors = resize_lora(form_inputs, inputs.product, inputs.scale)
    else:
        result = _compute(form_inputs)
    if isinstance(result, Factored) and inputs.product is None:
        base = None if inputs.base is None else inputs.base.to(device)
        result, tensors = _encode(form_inputs, result, codec, base)
    if isinstance(result, Factored) and inputs.bias is not None:
        bias = _corrected_bias(result, inputs.bias)
        tensors = (*tensors, bias)
        if not bool(torch.isfinite(bias).all()):
            result = Kept(reason=Reason.OUT_OF_RANGE, singular_values=result.singular_values)
    seconds = time.perf_counter() - begun
    if isinstance(result, Kept):
        reason: KeptReason = result.reason.value
        return _outcome(task, None, result.singular_values, reason=reason, seconds=seconds), ()
    outcome = _outcome(task, result, result.singular_values, reason=None, seconds=seconds)
    return outcome, tuple(tensor.cpu().contiguous() for tensor in tensors)


def is_unchanged(task: LayerTask, inputs: LayerInputs) -> bool:
    """Return whether the weight equals that of the base."""
    return task.base is not None and not bool(torch.any(inputs.weight))


def _compute(inputs: FormInputs) -> Factored | Kept:
    """Compute the form; in an adapter, at full rank where no lower rank meets the rule."""
    compute, layer = FORM_IMPLEMENTATIONS[inputs.layer.form.name].compute, inputs.layer
    result = compute(inputs)
    if layer.in_adapter and isinstance(result, Kept) and result.reason is Reason.NO_SAVING:
        return compute(replace(inputs, layer=replace(layer, rank=layer.largest_rank)))
    return result


def _encode(
    inputs: FormInputs, result: Factored, codec: CodecImplementation, base: torch.Tensor | None
) -> tuple[Factored | Kept, tuple[torch.Tensor, ...]]:
    """Encode the tensors to store, and measure the errors again if encoding changes them.

    A product that replaces the difference to a base [m, n] is stored as the sum of both.
    """
    layer, to_dense = inputs.layer, FORM_IMPLEMENTATIONS[inputs.layer.form.name].to_dense
    parts = result.factors if result.rounded is None else (result.rounded.dense(), *result.factors)
    matrices = (to_dense(parts),) if layer.dense_layout else parts
    if base is not None:
        matrices = (matrices[0] + base,)
    pairs = list(zip(layer.stored_matrices(result.rank), matrices, strict=True))
    encoded = [
        codec.encode(_as_stored(matrix.reshape(stored.shape), layer))
        if stored.by_layer_codec
        else _as_computed(stored, matrix, result.rounded)
        for stored, matrix in pairs
    ]
    tensors = tuple(tensor for several in encoded for tensor in several)
    # Integers alone are stored as they were measured.
    is_measured = not result.factors if result.rounded is not None else codec.is_exact
    if is_measured and not layer.dense_layout:
        return result, tensors
    decoded = [
        _as_stored(codec.decode(several), layer) if stored.by_layer_codec else matrix
        for (stored, matrix), several in zip(pairs, encoded, strict=True)
    ]
    product = decoded[0].reshape(inputs.weight.shape) if layer.dense_layout else to_dense(decoded)
    if base is not None:
        product = subtract(product, base)
    return _with_measured_errors(inputs, result, product), tensors


def _as_computed(
    stored: StoredMatrix, matrix: torch.Tensor, rounded: RoundedMatrix | None
) -> tuple[torch.Tensor, ...]:
    """Return the stored tensors of a matrix with a dtype or a codec of its own, which need no rounding."""
    if stored.codec is None:
        return (matrix,)
    assert rounded is not None
    return INTEGER_IMPLEMENTATIONS[stored.codec.name].pack(rounded)


def _corrected_bias(result: Factored, bias: torch.Tensor) -> torch.Tensor:
    """Return the bias [m], in its dtype, with which the outputs of what is stored keep their mean."""
    assert result.bias_shift is not None
    return (bias.to(result.bias_shift) + result.bias_shift).to(bias.dtype)


def _as_stored(matrix: torch.Tensor, layer: LayerPlan) -> torch.Tensor:
    """Convert between [outputs, inputs, *kernel] and the orientation in which the layer is stored."""
    return matrix.transpose(0, 1) if layer.transposed and not layer.in_adapter else matrix


def _with_measured_errors(inputs: FormInputs, result: Factored, product: torch.Tensor) -> Factored | Kept:
    """Return the result with the errors of the product [m, n] of the stored tensors."""
    if not bool(torch.isfinite(product).all()):
        return Kept(reason=Reason.OUT_OF_RANGE, singular_values=result.singular_values)
    error = relative_error(inputs.weight, (product,))
    result = replace(
        result,
        factors=(product,),
        rounded=None,
        relative_error=error,
        squared_error=error**2 * result.squared_norm,
        optimal_error=_at_most(result.optimal_error, error),
    )
    statistics = inputs.statistics
    if statistics is None or not statistics.weighs_errors:
        return result
    weighted = weighted_error(inputs.weight, (product,), statistics, centered=inputs.correct_bias)
    if not math.isfinite(weighted.loss or 0.0):
        return Kept(reason=Reason.OUT_OF_RANGE, singular_values=result.singular_values)
    return replace(
        result,
        output_error=_with_measured_output_error(result.output_error, weighted),
        predicted_loss=weighted.loss,
        bias_shift=weighted.shift,
    )


def _at_most(optimal: float | None, reached: float) -> float | None:
    """Both have rounding errors, but the best possible error is never above one that was achieved."""
    return None if optimal is None else min(optimal, reached)


def _with_measured_output_error(before: OutputError | None, weighted: WeightedError) -> OutputError | None:
    if before is None or weighted.outputs is None:
        return None
    error = weighted.outputs.relative
    return replace(
        before,
        relative_error=error,
        squared_error=error**2 * before.squared_norm,
        optimal_error=_at_most(before.optimal_error, error),
    )


def _outcome(
    task: LayerTask,
    factored: Factored | None,
    spectrum: torch.Tensor | None,
    *,
    reason: KeptReason | None,
    seconds: float,
) -> LayerOutcome:
    layer = task.layer
    rank = factored.rank if factored else None
    outputs = factored.output_error if factored else None
    values, indices = _sample(spectrum, task.spectrum_points, layer.form.full_rank(layer.map_shape))
    report = LayerReport(
        name=layer.name,
        tensor=layer.tensor,
        shape=layer.shape,
        transposed=layer.transposed,
        calibrated=layer.calibrated,
        dtype=layer.dtype,
        encoding=layer.encoding,
        outcome="factored" if factored else "kept",
        reason=reason,
        method=layer.form.name,
        selector=layer.form.selector,
        rank=rank,
        break_even_rank=layer.break_even_rank,
        parameters_before=layer.parameters_before,
        parameters_after=layer.parameters_after(rank),
        bytes_before=layer.bytes_before,
        bytes_after=layer.bytes_after(rank),
        relative_error=factored.relative_error if factored else None,
        optimal_error=factored.optimal_error if factored else None,
        weighted_error=outputs.relative_error if outputs else None,
        optimal_weighted_error=outputs.optimal_error if outputs else None,
        predicted_loss=factored.predicted_loss if factored else None,
        bias_corrected=layer.corrects_bias and factored is not None,
        decomposition=None if spectrum is None else "computed",
        singular_values=values,
        singular_value_indices=indices,
        columns=factored.columns if factored else None,
        rows=factored.rows if factored else None,
        seconds=seconds,
    )
    return LayerOutcome(
        report=report,
        squared_error=factored.squared_error if factored else 0.0,
        squared_norm=factored.squared_norm if factored else 0.0,
        squared_output_error=outputs.squared_error if outputs else 0.0,
        squared_output_norm=outputs.squared_norm if outputs else 0.0,
    )


def _sample(
    spectrum: torch.Tensor | None, points: int, size: int
) -> tuple[tuple[float, ...] | None, tuple[int, ...] | None]:
    """Sample the known leading part of a spectrum with `size` values; no indices if it is complete."""
    if spectrum is None:
        return None, None
    count = len(spectrum)
    if count == size <= points:
        return tuple(spectrum.tolist()), None
    indices, values = _sampled_indices(count, points), spectrum.tolist()
    return tuple(values[at] for at in indices), indices


# Layers of one shape have one sample, and a mixture of experts has thousands of a shape.
@lru_cache(maxsize=256)
def _sampled_indices(count: int, points: int) -> tuple[int, ...]:
    return tuple(np.unique(np.linspace(0, count - 1, points).round().astype(int)).tolist())
