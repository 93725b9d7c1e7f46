"""Build the JSON documents of a plan and of a stored checkpoint."""

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache

from schemas.checkpoint import Checkpoint, FileInfo, StoredTensor
from schemas.format.encodings import EncodedWeight
from schemas.format.files import CheckpointFiles
from schemas.format.tensor import DTYPE_BITS, WEIGHT
from schemas.plan import PlanDocument, PlannedLayer, PlanTotals, RankBounds
from schemas.planning.cost import ParameterCost
from schemas.planning.layer import LayerPlan, Tensor
from schemas.planning.layers import Layers, Plan
from schemas.planning.left_out import not_selected
from schemas.planning.planner import would_be_factored
from schemas.planning.selection import can_be_factored
from schemas.planning.stored import TWO_FACTORS
from schemas.rank_rule import RankRule, SpecRule, budget_of
from schemas.report import compression_factor, parameter_savings
from schemas.spec import CompressionSpec
from schemas.warning import first_warnings

# A text in JSON has no quotes but escaped ones, so that these are found nowhere else.
NO_LAYERS, LAYERS_BEGIN, LAYERS_END = '"layers":[],"totals":', '"layers":[', '],"totals":'
# Where each layer is of a kind of its own, only these are kept.
KINDS_KEPT = 1024
NAMELESS = f'{{"name":"","tensor":"{WEIGHT}"'


def plan_document(checkpoint: str | None, plan: Plan) -> PlanDocument:
    """Build the document of a plan; its sums are upper bounds where ranks depend on spectra."""
    layers = tuple(_planned_layer(layer) for layer in plan.layers)
    return _without_layers(checkpoint, plan).model_copy(update={"layers": layers})


def plan_text(checkpoint: str | None, plan: Plan) -> Iterator[str]:
    """Yield the same document as JSON, layer by layer: those of a plan take several times its memory.

    All of a kind differ in their names alone, so each kind is written once.
    """
    layers = Layers.of(plan.layers)
    before, after = _without_layers(checkpoint, plan).model_dump_json().rsplit(NO_LAYERS, 1)
    yield before + LAYERS_BEGIN

    @lru_cache(KINDS_KEPT)
    def rest(kind: int) -> str:
        """Return what follows the name, and that of the tensor."""
        planned = _planned_layer(layers.kind(kind))
        return planned.model_dump_json().removeprefix(NAMELESS)

    comma = ""
    for name, kind in layers.named():
        quoted_name = json.dumps(name, ensure_ascii=False)
        yield f'{comma}{{"name":{quoted_name},"tensor":{quoted_name[:-1]}{WEIGHT}"{rest(kind)}'
        comma = ","
    yield LAYERS_END + after


def _without_layers(checkpoint: str | None, plan: Plan) -> PlanDocument:
    return PlanDocument(
        checkpoint=checkpoint,
        warnings=first_warnings(plan.warnings),
        not_selected=not_selected(plan),
        layers=(),
        totals=_totals(plan),
    )


def _totals(plan: Plan) -> PlanTotals:
    parameters = sum(each.parameters for each in plan.unselected.values())
    nbytes = sum(each.nbytes for each in plan.unselected.values())
    # An adapter holds none of the other tensors.
    after, bytes_after = (0, 0) if plan.adapter else (parameters, nbytes)
    budget: SpecRule | None = None
    factored, layers, is_exact = 0, 0, True
    for layer, count in plan.counted():
        parameters += count * layer.parameters_before
        nbytes += count * layer.bytes_before
        after += count * (_parameters_after(layer) - layer.bias_entries_cut)
        bytes_after += count * (_bytes_after(layer) - layer.bias_bytes_cut)
        budget = budget or budget_of(layer.rank)
        factored += count * (layer.reason is None)
        layers += count
        is_exact = is_exact and not isinstance(layer.rank, RankRule)
    if budget is not None and plan.adapter:
        after = min(after, _adapter_limit(plan, budget) or after)
        bytes_after = min(bytes_after, budget.budget_bytes or bytes_after)
    elif budget is not None:
        saved = _parameters_saved(plan, budget)
        after = min(after, parameters - saved)
        bytes_after = min(bytes_after, budget.budget_bytes or nbytes - saved * _bytes_per_parameter(plan))
    return PlanTotals(
        parameters_before=parameters,
        parameters_after=after,
        parameter_savings=parameter_savings(parameters, after),
        compression_factor=compression_factor(parameters, after),
        bytes_before=nbytes,
        bytes_after=bytes_after,
        layers_factored=factored,
        layers_kept=layers - factored,
        exact=is_exact,
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
    if any(layer.codec.dtype != layer.dtype or layer.encoded is not None for layer in plan.layers):
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
        encoding=layer.encoding,
        outcome="factored" if layer.reason is None else "kept",
        reason=layer.reason,
        method=" or ".join(layer.methods),
        rank=rank,
        rank_bounds=_rank_bounds(layer) if is_open else None,
        break_even_rank=max(each.break_even_rank for each in layer.variants),
        parameters_before=layer.parameters_before,
        parameters_after=_parameters_after(layer),
        bytes_before=layer.bytes_before,
        bytes_after=_bytes_after(layer),
    )


def _rank_bounds(layer: LayerPlan) -> RankBounds:
    return RankBounds(
        least=min(each.ranks[0] for each in layer.variants), most=max(map(_most, layer.variants))
    )


def _parameters_after(layer: LayerPlan) -> int:
    """Return how many elements are stored; where the rank is not known yet, at most."""
    if not isinstance(layer.rank, RankRule):
        return layer.parameters_after(layer.rank)
    most = max(each.parameters_after(_most(each)) for each in layer.variants)
    # Only a form that rounds the weight may have more elements than the dense weight.
    return most if layer.in_adapter else max(most, layer.parameters_before)


def _bytes_after(layer: LayerPlan) -> int:
    if not isinstance(layer.rank, RankRule):
        return layer.bytes_after(layer.rank)
    # Factors may take more bytes than the dense weight if their storage dtype is wider.
    return max(layer.bytes_after(None), *(each.bytes_after(_most(each)) for each in layer.variants))


def _most(layer: LayerPlan) -> int:
    return layer.largest_rank if layer.in_adapter else layer.ranks[-1]


# A weight that can be factored at any rank can be factored at rank 1.
DEFAULT_SPEC = CompressionSpec(rank=1)
# About 200 kB; few checkpoints have more.
TENSORS_PER_PAGE = 1000
FIRST_PAGE = range(TENSORS_PER_PAGE)

NO_TENSORS, TENSORS_BEGIN, TENSORS_END = '"tensors":[],"next_cursor":', '"tensors":[', '],"next_cursor":'


def checkpoint_text(
    checkpoint_id: str,
    files: Iterable[FileInfo],
    missing: Iterable[str],
    content: CheckpointFiles,
    *,
    warnings: Iterable[str] = (),
    page: range = FIRST_PAGE,
) -> Iterator[str]:
    """Yield the document of a checkpoint as JSON, tensor by tensor; it is complete if no file is missing.

    `page` says which tensors are listed; all count in the sums.
    """
    files, missing, tensors, planned = tuple(files), tuple(missing), content.tensors, content.planned()
    shown = tensors[page.start : page.stop]
    weights: dict[str, Tensor] = {weight.values.name: weight for weight in planned.encoded}
    asked = [weights.get(tensor.name, tensor) for tensor in shown]
    selected = would_be_factored(
        asked, planned.tensors, DEFAULT_SPEC, factored=content.factored, aliases=content.aliases
    )
    document = Checkpoint(
        id=checkpoint_id,
        files=files,
        complete=not missing,
        missing=missing,
        warnings=first_warnings(warnings),
        parameters=content.parameters,
        bytes=sum(file.size_bytes for file in files),
        tensors=(),
        next_cursor=str(page.stop) if page.stop < len(tensors) else None,
    )
    before, after = document.model_dump_json().rsplit(NO_TENSORS, 1)
    yield before + TENSORS_BEGIN
    for number, (tensor, weight) in enumerate(zip(shown, asked, strict=True)):
        row = _stored_tensor(tensor, weight, selected=weight.name in selected).model_dump_json()
        yield f",{row}" if number else row
    yield TENSORS_END + after


def _stored_tensor(tensor: Tensor, weight: Tensor, *, selected: bool) -> StoredTensor:
    """Describe a tensor; `weight` is what it holds the values of, if it is not the tensor itself."""
    return StoredTensor(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        parameters=tensor.parameters,
        selected=selected,
        break_even_rank=_break_even_rank(weight),
    )


def _break_even_rank(weight: Tensor) -> int | None:
    """Return the largest rank at which two factors save, of a quantized weight in bytes."""
    if isinstance(weight, EncodedWeight):
        return (weight.nbytes - 1) * 8 // (sum(weight.shape) * DTYPE_BITS[weight.dtype])
    return TWO_FACTORS.break_even_rank(weight.shape) if can_be_factored(weight, (TWO_FACTORS,)) else None
