"""Build the JSON documents of a plan and of a stored checkpoint."""

from collections.abc import Iterable, Sequence

from schemas.checkpoint import Checkpoint, FileInfo, StoredTensor
from schemas.format.files import CheckpointFiles
from schemas.format.tensor import DTYPE_BITS
from schemas.plan import PlanDocument, PlannedLayer, PlanTotals, RankBounds
from schemas.planning.cost import ParameterCost
from schemas.planning.layer import TWO_FACTORS, LayerPlan, Plan, Tensor
from schemas.planning.left_out import not_selected
from schemas.planning.planner import would_be_factored
from schemas.planning.selection import can_be_factored
from schemas.rank_rule import RankRule, SpecRule, budget_of
from schemas.report import compression_factor, parameter_savings
from schemas.spec import CompressionSpec
from schemas.warning import first_warnings


def plan_document(checkpoint: str | None, tensors: Sequence[Tensor], plan: Plan) -> PlanDocument:
    """Build the document of a plan; its sums are upper bounds where ranks depend on spectra."""
    layers = tuple(_planned_layer(layer) for layer in plan.layers)
    parameters = sum(tensor.parameters for tensor in tensors)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    # An adapter holds none of the other tensors.
    after = 0 if plan.adapter else parameters - sum(layer.parameters_before for layer in layers)
    after += sum(layer.parameters_after for layer in layers)
    after -= sum(layer.bias_entries_cut for layer in plan.layers)
    bytes_after = 0 if plan.adapter else nbytes - sum(layer.bytes_before for layer in layers)
    bytes_after += sum(layer.bytes_after for layer in layers)
    bytes_after -= sum(layer.bias_bytes_cut for layer in plan.layers)
    budget = next(filter(None, (budget_of(layer.rank) for layer in plan.layers)), None)
    if budget is not None and plan.adapter:
        after = min(after, _adapter_limit(plan, budget) or after)
        bytes_after = min(bytes_after, budget.budget_bytes or bytes_after)
    elif budget is not None:
        saved = _parameters_saved(plan, budget)
        after = min(after, parameters - saved)
        bytes_after = min(bytes_after, budget.budget_bytes or nbytes - saved * _bytes_per_parameter(plan))
    totals = PlanTotals(
        parameters_before=parameters,
        parameters_after=after,
        parameter_savings=parameter_savings(parameters, after),
        compression_factor=compression_factor(parameters, after),
        bytes_before=nbytes,
        bytes_after=bytes_after,
        layers_factored=sum(layer.outcome == "factored" for layer in layers),
        layers_kept=sum(layer.outcome == "kept" for layer in layers),
        exact=all(layer.rank_bounds is None for layer in layers),
    )
    return PlanDocument(
        checkpoint=checkpoint,
        warnings=first_warnings(plan.warnings),
        not_selected=not_selected(tensors, plan),
        layers=layers,
        totals=totals,
    )


def _adapter_limit(plan: Plan, rule: SpecRule) -> int | None:
    return None if rule.budget is None else ParameterCost(plan.layers, rule.budget).limit


def _parameters_saved(plan: Plan, rule: SpecRule) -> int:
    """Return a lower bound of the stored parameters that a budget saves."""
    # A budget in bytes, or over factors that are multiplied out, says nothing about stored parameters.
    if rule.budget is None or any(layer.dense_layout for layer in plan.layers):
        return 0
    cost_model = ParameterCost(plan.layers, rule.budget)
    return cost_model.total({}) - cost_model.limit


def _bytes_per_parameter(plan: Plan) -> int:
    """Return a lower bound of the bytes saved per parameter; 0 where factors may be wider than the weight."""
    if any(layer.codec.dtype != layer.dtype for layer in plan.layers):
        return 0
    return min(DTYPE_BITS[layer.dtype] for layer in plan.layers) // 8


def _planned_layer(layer: LayerPlan) -> PlannedLayer:
    is_open = isinstance(layer.rank, RankRule)
    rank = layer.rank if isinstance(layer.rank, int) else None
    return PlannedLayer(
        name=layer.name,
        tensor=layer.tensor,
        shape=layer.shape,
        shape_after=None if layer.pair is None or rank is None else layer.stored_tensors(rank)[0].shape,
        pair=layer.pair,
        transposed=layer.transposed,
        calibrated=layer.calibrated,
        dtype=layer.dtype,
        outcome="factored" if layer.reason is None else "kept",
        reason=layer.reason,
        method=" or ".join(layer.methods),
        rank=rank,
        rank_bounds=_rank_bounds(layer) if is_open else None,
        break_even_rank=max(each.break_even_rank for each in layer.variants),
        parameters_before=layer.parameters_before,
        parameters_after=_max_parameters_after(layer) if is_open else layer.parameters_after(rank),
        bytes_before=layer.bytes_before,
        bytes_after=_max_bytes_after(layer) if is_open else layer.bytes_after(rank),
    )


def _rank_bounds(layer: LayerPlan) -> RankBounds:
    return RankBounds(
        least=min(each.ranks[0] for each in layer.variants), most=max(map(_most, layer.variants))
    )


def _max_parameters_after(layer: LayerPlan) -> int:
    most = max(each.parameters_after(_most(each)) for each in layer.variants)
    # Only a form that rounds the weight may have more elements than the dense weight.
    return most if layer.in_adapter else max(most, layer.parameters_before)


def _max_bytes_after(layer: LayerPlan) -> int:
    # Factors may take more bytes than the dense weight if their storage dtype is wider.
    return max(layer.bytes_after(None), *(each.bytes_after(_most(each)) for each in layer.variants))


def _most(layer: LayerPlan) -> int:
    return layer.largest_rank if layer.in_adapter else layer.ranks[-1]


# A weight that can be factored at any rank can be factored at rank 1.
DEFAULT_SPEC = CompressionSpec(rank=1)
# About 200 kB; few checkpoints have more.
TENSORS_PER_PAGE = 1000
FIRST_PAGE = range(TENSORS_PER_PAGE)


def checkpoint_document(
    checkpoint_id: str,
    files: Iterable[FileInfo],
    missing: Iterable[str],
    content: CheckpointFiles,
    *,
    warnings: Iterable[str] = (),
    page: range = FIRST_PAGE,
) -> Checkpoint:
    """Build the document of a checkpoint; it is complete if no file is missing.

    `page` says which tensors are listed; all count in the sums.
    """
    files, missing, tensors = tuple(files), tuple(missing), content.tensors
    shown = tensors[page.start : page.stop]
    selected = would_be_factored(
        shown, tensors, DEFAULT_SPEC, factored=content.factored, aliases=content.aliases
    )
    return Checkpoint(
        id=checkpoint_id,
        files=files,
        complete=not missing,
        missing=missing,
        warnings=first_warnings(warnings),
        parameters=content.parameters,
        bytes=sum(file.size_bytes for file in files),
        tensors=tuple(_stored_tensor(tensor, selected=tensor.name in selected) for tensor in shown),
        next_cursor=str(page.stop) if page.stop < len(tensors) else None,
    )


def _stored_tensor(tensor: Tensor, *, selected: bool) -> StoredTensor:
    return StoredTensor(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        parameters=tensor.parameters,
        selected=selected,
        break_even_rank=TWO_FACTORS.break_even_rank(tensor.shape)
        if can_be_factored(tensor, (TWO_FACTORS,))
        else None,
    )
