"""One weight in, its stored factors and its line of the report out."""

import time
from dataclasses import replace

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from schemas.report import KeptReason, LayerReport
from schemas.spec import RankRule
from worker.checkpoint.reader import torch_dtype
from worker.layer_cache import CachedLayer
from worker.lowrank import (
    EnergyRank,
    ErrorRank,
    Factored,
    FactorRequest,
    Kept,
    Reason,
    Weighted,
    factor,
    relative_error,
    weighted_error,
)
from worker.work_plan import LayerTask

SPECTRUM_POINTS = 256


class LayerOutcome(BaseModel):
    """What is kept of a finished layer besides its factors: enough for the report without the weight."""

    model_config = ConfigDict(frozen=True)

    report: LayerReport
    squared_error: float
    squared_norm: float
    squared_weighted_error: float = 0.0
    squared_weighted_norm: float = 0.0

    @property
    def rank(self) -> int | None:
        """The rank, or None where the layer is kept dense."""
        return self.report.rank


def kept_outcome(task: LayerTask, reason: KeptReason) -> LayerOutcome:
    """Describe a layer that stays dense by the plan alone."""
    return _outcome(task, None, None, reason=reason, seconds=0.0)


def factor_layer(
    task: LayerTask,
    weight: torch.Tensor,
    gram: torch.Tensor | None = None,
    *,
    seed: int,
    device: torch.device,
    memo: CachedLayer | None = None,
) -> tuple[LayerOutcome, tuple[torch.Tensor, ...]]:
    """Factor a weight as planned; numerical trouble comes back as a kept layer with its reason.

    Parameters
    ----------
    task
        What is to be done.
    weight : Tensor [rows, columns]
        The weight as the map it is, transposed where it is stored so.
    gram : Tensor [columns, columns] or None
        XXᵀ of its inputs X, where it is calibrated.
    seed
        Seeds the sampling selectors.
    device
        Where the numerics run; the factors come back on the CPU.
    memo
        What is known of the layer's decomposition, and what is to be kept of it.

    Returns
    -------
    outcome, factors
        The factors in the order of a stock Sequential, input side first, transposed where the weight is
        stored so; in the dense layout their product alone; nothing for a kept layer.
    """
    begun = time.perf_counter()
    weight, gram = weight.to(device), None if gram is None else gram.to(device)
    request = _request(task, weight, gram, seed=seed, extent=memo.extent if memo else None)
    result = factor(weight, request, memo=memo)
    if isinstance(result, Factored) and task.layer.dense_layout:
        result = _multiplied_out(weight, gram, result, torch_dtype(task.layer.stored_dtype))
    seconds = time.perf_counter() - begun
    if isinstance(result, Factored):
        parts = (part.mT if task.layer.transposed else part for part in result.factors)
        factors = tuple(part.cpu().contiguous() for part in parts)
        return _outcome(task, result, result.singular_values, reason=None, seconds=seconds), factors
    reason: KeptReason = result.reason.value
    return _outcome(task, None, result.singular_values, reason=reason, seconds=seconds), ()


def _request(
    task: LayerTask, weight: torch.Tensor, gram: torch.Tensor | None, *, seed: int, extent: int | None
) -> FactorRequest:
    layer = task.layer
    stored = torch_dtype(layer.stored_dtype)
    # Factors that are only multiplied out are not rounded first.
    dtype = torch.promote_types(weight.dtype, torch.float32) if layer.dense_layout else stored
    return FactorRequest(
        method=layer.method,
        rank=_rank(layer.rank),
        max_rank=layer.break_even_rank,
        selector=layer.selector,
        storage="three" if layer.factors == 3 else "two",
        dtype=dtype,
        seed=seed,
        align=layer.align,
        min_rank=layer.min_rank,
        extent=extent,
        gram=gram,
    )


def _rank(rank: int | RankRule | None) -> int | EnergyRank | ErrorRank:
    if isinstance(rank, int):
        return rank
    if rank is not None and rank.energy is not None:
        return EnergyRank(rank.energy)
    assert rank is not None
    assert rank.error is not None
    return ErrorRank(rank.error)


def _multiplied_out(
    weight: torch.Tensor, gram: torch.Tensor | None, result: Factored, dtype: torch.dtype
) -> Factored | Kept:
    product = result.factors[0]  # [k, n]
    for part in result.factors[1:]:
        product = part @ product  # [k, n], at last [m, n]
    product = product.to(dtype)
    if not bool(torch.isfinite(product).all()):
        return Kept(reason=Reason.OUT_OF_RANGE, singular_values=result.singular_values)
    error = relative_error(weight, (product,))
    optimum = result.optimal_error
    return replace(
        result,
        factors=(product,),
        relative_error=error,
        squared_error=error**2 * result.squared_norm,
        # Both are known to some digits only; the least error is never above one that was reached.
        optimal_error=None if optimum is None else min(optimum, error),
        weighted=_weighted_anew(weight, gram, result.weighted, product),
    )


def _weighted_anew(
    weight: torch.Tensor, gram: torch.Tensor | None, before: Weighted | None, product: torch.Tensor
) -> Weighted | None:
    if before is None or gram is None:
        return None
    error = weighted_error(weight, (product,), gram)
    return replace(
        before,
        relative_error=error,
        squared_error=error**2 * before.squared_norm,
        optimal_error=min(before.optimal_error, error),
    )


def _outcome(
    task: LayerTask,
    done: Factored | None,
    spectrum: torch.Tensor | None,
    *,
    reason: KeptReason | None,
    seconds: float,
) -> LayerOutcome:
    layer = task.layer
    rank = done.rank if done else None
    weighted = done.weighted if done else None
    values, indices = _sample(spectrum, min(layer.rows, layer.columns))
    report = LayerReport(
        name=layer.name,
        tensor=layer.tensor,
        shape=layer.shape,
        transposed=layer.transposed,
        calibrated=layer.calibrated,
        dtype=layer.dtype,
        outcome="factored" if done else "kept",
        reason=reason,
        method=layer.method,
        selector=None if layer.method == "svd" else layer.selector,
        rank=rank,
        break_even_rank=layer.break_even_rank,
        parameters_before=layer.parameters_before,
        parameters_after=layer.parameters_after(rank),
        bytes_before=layer.bytes_before,
        bytes_after=layer.bytes_after(rank),
        relative_error=done.relative_error if done else None,
        optimal_error=done.optimal_error if done else None,
        weighted_error=weighted.relative_error if weighted else None,
        optimal_weighted_error=weighted.optimal_error if weighted else None,
        decomposition=None if spectrum is None else "computed",
        singular_values=values,
        singular_value_indices=indices,
        columns=done.columns if done else None,
        rows=done.rows if done else None,
        seconds=seconds,
    )
    return LayerOutcome(
        report=report,
        squared_error=done.squared_error if done else 0.0,
        squared_norm=done.squared_norm if done else 0.0,
        squared_weighted_error=weighted.squared_error if weighted else 0.0,
        squared_weighted_norm=weighted.squared_norm if weighted else 0.0,
    )


def _sample(
    spectrum: torch.Tensor | None, size: int
) -> tuple[tuple[float, ...] | None, tuple[int, ...] | None]:
    """Return points of the leading part of a spectrum of that size, and their indices unless they are all."""
    if spectrum is None:
        return None, None
    count = len(spectrum)
    if count == size <= SPECTRUM_POINTS:
        return tuple(spectrum.tolist()), None
    indices = np.unique(np.linspace(0, count - 1, SPECTRUM_POINTS).round().astype(int)).tolist()
    return tuple(spectrum[indices].tolist()), tuple(indices)
