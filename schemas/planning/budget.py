"""A budget over all layers: check that it can be met, and turn it into ranks once the spectra are known."""

import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isinf

from schemas.format.files import CheckpointFiles
from schemas.planning.adapter import adapter_ranks
from schemas.planning.allocation import allocate, lowest_price
from schemas.planning.cost import CostModel, Ranks, make_cost_model
from schemas.planning.layer import LayerPlan, Plan
from schemas.planning.rate_curve import Candidate, Choice, RateCurve, make_rate_curve
from schemas.report import KeptReason
from schemas.spec import CompressionSpec, Objective, RankRule, SpecRule, budget_of
from schemas.spectrum import Spectrum, first_accurate, squared_tails
from schemas.spectrum_rank import auto_rank

# A few bytes of the output depend on all ranks together, such as the digits of offsets. They are found by
# allocating again with the cost of the last round.
MAX_ROUNDS = 5
# Singular values by tensor.
Spectra = Mapping[str, Sequence[float]]
# By tensor, spectra from the cache in order of increasing accuracy.
CachedSpectra = Mapping[str, Sequence[Spectrum]]


def shares_budget(layer: LayerPlan) -> bool:
    """Return whether a budget decides the rank of a layer."""
    return budget_of(layer.rank) is not None


def check_budget(plan: Plan, spec: CompressionSpec, files: CheckpointFiles) -> None:
    """Raise a `SpecError` if no spectra could make the budget sufficient."""
    if (rule := budget_of(spec.rank)) is not None:
        _checked_cost_model(rule, plan.layers, files)


def spend_budget(
    plan: Plan,
    spec: CompressionSpec,
    files: CheckpointFiles,
    spectra: Spectra,
    settled: Mapping[str, int | KeptReason],
) -> Plan:
    """Give each layer that shares a budget its rank, or keep it dense; the other layers stay as planned.

    Parameters
    ----------
    plan
        The plan that `make_plan` made from the spec.
    spec
        The spec; without a budget the plan is returned unchanged.
    files
        The input; its other tensors count where the budget is in bytes.
    spectra
        All singular values of W, descending, for each layer that shares the budget and is not `settled`.
    settled
        By tensor, results of layers: the rank of a layer with a rule of its own, or the reason why a layer
        stays dense against the plan.

    Raises
    ------
    SpecError
        If the budget cannot be met.
    """
    rule = budget_of(spec.rank)
    if rule is None:
        return plan
    spectra = {name: _finite(spectrum) for name, spectrum in spectra.items()}
    layers = tuple(settle(layer, settled.get(layer.tensor)) for layer in plan.layers)
    cost_model = _checked_cost_model(rule, layers, files)
    ranks = _allocate_ranks(cost_model, layers, _rate_curves(cost_model, layers, spectra, spec.objective))
    final = []
    for number, (planned, layer) in enumerate(zip(plan.layers, layers, strict=True)):
        shared = settle(layer, ranks.get(number, "kept_by_budget")) if shares_budget(layer) else layer
        final.append(shared if shares_budget(planned) else planned)
    return replace(plan, layers=tuple(final))


def settle(layer: LayerPlan, result: int | KeptReason | None) -> LayerPlan:
    """Return the layer with its final rank, or with the reason why it stays dense; None changes nothing."""
    if result is None:
        return layer
    if isinstance(result, int):
        return replace(layer, rank=result, reason=None)
    return replace(layer, rank=None, reason=result)


def resolve_ranks(plan: Plan, spec: CompressionSpec, files: CheckpointFiles, cached: CachedSpectra) -> Plan:
    """Resolve all ranks that the cached spectra determine, to the same values as a job would.

    Raises
    ------
    SpecError
        If the spectra show that the budget cannot be met.
    """
    layers = tuple(settle(layer, _rank_by_spectrum(layer, cached)) for layer in plan.layers)
    resolved = replace(plan, layers=layers)
    open_layers = [layer for layer in layers if isinstance(layer.rank, RankRule)]
    accurate = {
        layer.tensor: first_accurate(cached.get(layer.tensor, ()), layer.num_vectors) for layer in open_layers
    }
    spectra = {tensor: spectrum.scaled() for tensor, spectrum in accurate.items() if spectrum is not None}
    # A budget can be spent only once the spectra of all its layers are known.
    if not all(shares_budget(layer) and layer.tensor in spectra for layer in open_layers):
        return resolved
    return spend_budget(resolved, spec, files, spectra, {})


def _checked_cost_model(rule: SpecRule, layers: Sequence[LayerPlan], files: CheckpointFiles) -> CostModel:
    """Return the cost model of a budget, or raise a `SpecError` if the cheapest ranks exceed the budget."""
    cost_model = make_cost_model(rule, layers, files)
    cheapest = _cheapest_ranks(cost_model, layers)
    if cost_model.total(cheapest) > cost_model.limit:
        raise cost_model.budget_error(cheapest)
    return cost_model


def _cheapest_ranks(cost_model: CostModel, layers: Sequence[LayerPlan]) -> dict[int, int]:
    """Return the ranks with the lowest total cost, by number; layers that cost less dense are left out."""
    ranks = {}
    for number, layer in enumerate(layers):
        if layer.in_adapter and isinstance(layer.rank, RankRule):
            continue  # Left out, it costs nothing.
        first = layer.ranks[0] if isinstance(layer.rank, RankRule) else layer.rank
        if first is not None:
            cheaper = cost_model.costs(layer, [first])[0] < cost_model.dense_cost(layer)
            if cheaper or isinstance(layer.rank, int):
                ranks[number] = first
    return ranks


def _rate_curves(
    cost_model: CostModel, layers: Sequence[LayerPlan], spectra: Spectra, objective: Objective
) -> dict[int, RateCurve]:
    """Return the rate-distortion curve of each layer that shares the budget, by number."""
    shared = {number: layer for number, layer in enumerate(layers) if shares_budget(layer)}
    largest = max((_scale(spectra[layer.tensor]) for layer in shared.values()), default=1.0)
    curves = {}
    for number, layer in shared.items():
        spectrum = spectra[layer.tensor]
        # In units of the largest value, no square exceeds the range of float64.
        tails = squared_tails(spectrum, _scale(spectrum) if objective == "relative" else largest)
        unit = layer.importance / (tails[0] or 1.0) if objective == "relative" else layer.importance
        ranks, exact_cost = _choices(cost_model, layer)
        errors = [unit * tails[rank] for rank in ranks]
        candidate = Candidate(0, ranks, cost_model.costs(layer, ranks), errors)
        curves[number] = make_rate_curve(layer.tensor, (candidate,), exact_cost)
    return curves


def _choices(cost_model: CostModel, layer: LayerPlan) -> tuple[Sequence[int], int]:
    """Return the ranks that a layer may get, and the cost without an error: dense, or at full rank."""
    if not layer.in_adapter:
        return layer.ranks, cost_model.dense_cost(layer)
    *ranks, full = adapter_ranks(layer)
    return ranks, cost_model.costs(layer, [full])[0]


def _chosen_rank(layer: LayerPlan, choice: Choice | None) -> int | None:
    """Return the rank of a choice from a curve, whose last one is None, or None for no rank."""
    if not layer.in_adapter:
        return None if choice is None else choice.rank
    return layer.largest_rank if choice is None else choice.rank or None


def _scale(spectrum: Sequence[float]) -> float:
    return spectrum[0] or 1.0


def _finite(spectrum: Sequence[float]) -> Sequence[float]:
    """Replace infinite values by the largest double."""
    return [min(value, sys.float_info.max) for value in spectrum] if isinf(spectrum[0]) else spectrum


def _allocate_ranks(
    cost_model: CostModel, layers: Sequence[LayerPlan], curves: Mapping[int, RateCurve]
) -> Ranks:
    """Return the rank of each factored layer, by number; no further step of any layer fits the budget."""
    fixed = {number: layer.rank for number, layer in enumerate(layers) if isinstance(layer.rank, int)}
    best, best_capacity = _cheapest_ranks(cost_model, layers), sum(c.costs[0] for c in curves.values())
    # The costs that no curve has: of other layers, other tensors, and headers.
    overhead = cost_model.total(fixed) - sum(cost_model.dense_cost(layers[number]) for number in curves)
    price = None
    for _ in range(MAX_ROUNDS):
        capacity = cost_model.limit - overhead
        if capacity < best_capacity:
            break
        price = lowest_price(list(curves.values()), capacity, near=price)
        allocated = allocate(list(curves.values()), capacity, price=price)
        ranks = fixed | {
            i: rank
            for i, curve in curves.items()
            if (rank := _chosen_rank(layers[i], allocated[curve.name])) is not None
        }
        total = cost_model.total(ranks)
        if total <= cost_model.limit:
            best, best_capacity = ranks, capacity
        actual_overhead = total - sum(curve.cost(allocated[curve.name]) for curve in curves.values())
        if actual_overhead == overhead:
            break
        overhead = actual_overhead
    return best


def _rank_by_spectrum(layer: LayerPlan, cached: CachedSpectra) -> int | KeptReason | None:
    """Return the rank or the reason that a cached spectrum alone gives by a layer's rule, or None."""
    rule = layer.rank
    if not isinstance(rule, RankRule) or (rule.energy is None and rule.auto is None):
        return None
    for spectrum in cached.get(layer.tensor, ()):
        if rule.energy is not None:
            least = spectrum.rank_of_energy(rule.energy)
        elif rule.auto is not None:
            shape = layer.rows, layer.columns
            least = auto_rank(rule.auto, spectrum.values, shape, spectrum.roundoff)
        if least is None:
            continue
        if least == 0:
            return "rank_zero"
        at = bisect_left(layer.ranks, least)
        if at == len(layer.ranks) and not layer.in_adapter:
            return "no_saving"
        rank = layer.ranks[at] if at < len(layer.ranks) else layer.largest_rank
        if spectrum.is_accurate_for(rank):
            return rank
    return None
