"""A plan as the document that a client reads."""

from collections.abc import Collection, Iterable, Sequence

from schemas.checkpoint import Checkpoint, FileInfo, StoredTensor
from schemas.format.tensor import DTYPE_BITS
from schemas.plan import PlanDocument, PlannedLayer, PlanTotals, RankBounds
from schemas.planning.budget import shares_budget
from schemas.planning.cost import ParameterCost
from schemas.planning.forms import FORMS, FormOptions
from schemas.planning.layer import LayerPlan, Plan, Tensor
from schemas.planning.planner import is_candidate, make_plan
from schemas.spec import CompressionSpec, RankRule, SpecRule


def plan_document(checkpoint: str | None, tensors: Sequence[Tensor], plan: Plan) -> PlanDocument:
    """Show a plan in the report's terms."""
    layers = tuple(_planned(layer) for layer in plan.layers)
    parameters = sum(tensor.parameters for tensor in tensors)
    after = parameters + sum(x.parameters_after - x.parameters_before for x in layers)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    bytes_after = nbytes + sum(x.bytes_after - x.bytes_before for x in layers)
    open_budget = next((layer.rank for layer in plan.layers if shares_budget(layer)), None)
    if isinstance(open_budget, SpecRule):
        spared = _spared(plan, open_budget)
        after = min(after, parameters - spared)
        bytes_after = min(bytes_after, open_budget.budget_bytes or nbytes - spared * _least_item(plan))
    totals = PlanTotals(
        parameters_before=parameters,
        parameters_after=after,
        parameter_savings=1 - after / parameters if parameters else 0.0,
        compression_factor=parameters / after if after else 1.0,
        bytes_before=nbytes,
        bytes_after=bytes_after,
        layers_factored=sum(x.outcome == "factored" for x in layers),
        layers_kept=sum(x.outcome == "kept" for x in layers),
        exact=all(x.rank_bounds is None for x in layers),
    )
    return PlanDocument(checkpoint=checkpoint, warnings=plan.warnings, layers=layers, totals=totals)


def _spared(plan: Plan, rule: SpecRule) -> int:
    """Return how many parameters a budget spares at least, where it is one of parameters that are stored."""
    if rule.budget is None or any(layer.dense_layout for layer in plan.layers):
        return 0
    cost_model = ParameterCost(plan.layers, rule.budget)
    return cost_model.total({}) - cost_model.limit


def _least_item(plan: Plan) -> int:
    """Return the least bytes of a parameter that is spared; 0 where factors may be wider than the weight."""
    if any(layer.codec.dtype != layer.dtype for layer in plan.layers):
        return 0
    return min(DTYPE_BITS[layer.dtype] for layer in plan.layers) // 8


def _planned(layer: LayerPlan) -> PlannedLayer:
    open_rank = isinstance(layer.rank, RankRule)
    rank = layer.rank if isinstance(layer.rank, int) else None
    return PlannedLayer(
        name=layer.name,
        tensor=layer.tensor,
        shape=layer.shape,
        transposed=layer.transposed,
        calibrated=layer.calibrated,
        dtype=layer.dtype,
        outcome="factored" if layer.reason is None else "kept",
        reason=layer.reason,
        method=layer.form.name,
        rank=rank,
        rank_bounds=RankBounds(least=layer.ranks[0], most=layer.ranks[-1]) if open_rank else None,
        break_even_rank=layer.break_even_rank,
        parameters_before=layer.parameters_before,
        parameters_after=layer.parameters_after(rank),
        bytes_before=layer.bytes_before,
        bytes_after=_bytes_bound(layer) if open_rank else layer.bytes_after(rank),
    )


def _bytes_bound(layer: LayerPlan) -> int:
    """Bound the bytes where the rank is open: a wider storage dtype may outweigh the parameters saved."""
    return max(layer.bytes_after(None), layer.bytes_after(layer.ranks[-1]))


# The defaults of everything but the rank: at rank 1 every weight is factored that can be at any.
DEFAULT_SPEC = CompressionSpec(rank=1)
_TWO_FACTORS = FORMS["svd"].of(FormOptions())


def checkpoint_document(
    checkpoint_id: str,
    files: Iterable[FileInfo],
    missing: Iterable[str],
    tensors: Sequence[Tensor],
    *,
    factored: Collection[str] = frozenset(),
) -> Checkpoint:
    """Describe a checkpoint; nothing missing means that it is complete; `factored` is as in `make_plan`."""
    files, missing = tuple(files), tuple(missing)
    layers = make_plan(tensors, DEFAULT_SPEC, factored=factored).layers
    selected = {layer.tensor for layer in layers if layer.reason is None}
    return Checkpoint(
        id=checkpoint_id,
        files=files,
        complete=not missing,
        missing=missing,
        parameters=sum(tensor.parameters for tensor in tensors),
        bytes=sum(file.size_bytes for file in files),
        tensors=tuple(_tensor(tensor, selected=tensor.name in selected) for tensor in tensors),
    )


def _tensor(tensor: Tensor, *, selected: bool) -> StoredTensor:
    return StoredTensor(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        parameters=tensor.parameters,
        selected=selected,
        break_even_rank=_TWO_FACTORS.break_even_rank(tensor.shape) if is_candidate(tensor) else None,
    )
