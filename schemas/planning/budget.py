"""A budget over all layers: check that it can be met, and turn it into forms and ranks by known spectra."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from schemas.format.files import CheckpointFiles
from schemas.planning.adapter import adapter_ranks
from schemas.planning.allocation import allocate, lowest_price, undecided
from schemas.planning.cost import CostModel, make_cost_model
from schemas.planning.distortion import LayerSpectra, finite, objective_of, units
from schemas.planning.forms import Form
from schemas.planning.layer import Chosen, LayerPlan
from schemas.planning.layers import Plan
from schemas.planning.rate_curve import Candidate, Choice, RateCurve, make_rate_curve
from schemas.rank_rule import RankRule, SpecRule, budget_of
from schemas.report import KeptReason
from schemas.spec import CompressionSpec
from schemas.spectrum import Spectrum, first_accurate
from schemas.spectrum_rank import auto_rank

# A few bytes of the output depend on all ranks together, such as the digits of offsets. They are found by
# allocating again with the cost of the last round.
MAX_ROUNDS = 5
# By tensor.
Known = Mapping[str, LayerSpectra]
# By tensor, spectra from the cache in order of increasing accuracy.
CachedSpectra = Mapping[str, Sequence[Spectrum]]


@dataclass(frozen=True, slots=True)
class Undecided:
    """Forms of layers, by tensor, whose exact errors decide how a budget is spent."""

    forms: tuple[tuple[str, Form], ...]


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
    known: Known,
    settled: Mapping[str, int | KeptReason],
) -> Plan | Undecided:
    """Give each layer that shares a budget form and rank, or keep it dense; other layers stay as planned.

    Parameters
    ----------
    plan
        The plan that `make_plan` made from the spec.
    spec
        The spec; without a budget the plan is returned unchanged.
    files
        The input; its other tensors count where the budget is in bytes.
    known
        By tensor, singular values or their norms of each layer that shares the budget and is not `settled`.
    settled
        By tensor, results of layers: the rank of a layer with a rule of its own, or the reason why a layer
        stays dense against the plan.

    Returns
    -------
    Plan or Undecided
        The forms whose spectra must be known first, where only norms are given.

    Raises
    ------
    SpecError
        If the budget cannot be met.
    """
    rule = budget_of(spec.rank)
    if rule is None:
        return plan
    layers = tuple(settle(layer, settled.get(layer.tensor)) for layer in plan.layers)
    cost_model = _checked_cost_model(rule, layers, files)
    shared = {number: layer for number, layer in enumerate(layers) if shares_budget(layer)}
    curves = _rate_curves(cost_model, shared, known, units(shared, known, objective_of(spec, plan)))
    chosen = _allocate(cost_model, layers, curves, known)
    if isinstance(chosen, Undecided):
        return chosen
    final = []
    for number, (planned, layer) in enumerate(zip(plan.layers, layers, strict=True)):
        shared_layer = chosen.get(number) or settle(layer, layer.reason or "kept_by_budget")
        final.append(shared_layer if shares_budget(planned) else planned)
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
    known = {
        layer.tensor: LayerSpectra({layer.decomposed: finite(spectrum.scaled())})
        for layer in open_layers
        if (spectrum := accurate[layer.tensor]) is not None
    }
    # A budget can be spent only once the spectra of all its layers are known. Only a job compares forms, and
    # knows what rounding loses.
    is_plain = all(not layer.candidates and layer.form.quantizer is None for layer in open_layers)
    if not is_plain or not all(shares_budget(layer) and layer.tensor in known for layer in open_layers):
        return resolved
    spent = spend_budget(resolved, spec, files, known, {})
    return resolved if isinstance(spent, Undecided) else spent


def _checked_cost_model(rule: SpecRule, layers: Sequence[LayerPlan], files: CheckpointFiles) -> CostModel:
    """Return the cost model of a budget, or raise a `SpecError` if the cheapest ranks exceed the budget."""
    cost_model = make_cost_model(rule, layers, files)
    cheapest = _cheapest(cost_model, layers)
    if cost_model.total(cheapest) > cost_model.limit:
        raise cost_model.budget_error(cheapest)
    return cost_model


def _cheapest(cost_model: CostModel, layers: Sequence[LayerPlan]) -> dict[int, LayerPlan]:
    """Return the choices with the lowest total cost, by number; layers that cost less dense are left out."""
    chosen = {}
    for number, layer in enumerate(layers):
        if isinstance(layer.rank, int):
            chosen[number] = layer
        elif isinstance(layer.rank, RankRule) and not layer.in_adapter:  # there, it costs nothing left out
            firsts = {cost_model.costs(each, each.ranks[:1])[0]: each for each in reversed(layer.variants)}
            least = min(firsts)
            if least < cost_model.dense_cost(layer):
                chosen[number] = replace(firsts[least], rank=firsts[least].ranks[0])
    return chosen


def _rate_curves(
    cost_model: CostModel,
    shared: Mapping[int, LayerPlan],
    known: Known,
    measures: Mapping[int, tuple[float, float]],
) -> dict[int, RateCurve]:
    """Return the rate-distortion curve of each layer that shares the budget, by number."""
    curves = {}
    for number, layer in shared.items():
        scale, factor = measures[number]
        candidates = []
        for form, variant in enumerate(layer.variants):
            ranks, exact_cost = _choices(cost_model, variant)
            errors = known[layer.tensor].errors(variant, ranks, scale)
            costs = cost_model.costs(variant, ranks)
            candidates.append(Candidate(form, ranks, costs, [factor * error for error in errors]))
        curves[number] = make_rate_curve(layer.tensor, candidates, exact_cost)
    return curves


def _choices(cost_model: CostModel, layer: LayerPlan) -> tuple[Sequence[int], int]:
    """Return the ranks that a layer may get, and the cost without an error: dense, or at full rank."""
    if not layer.in_adapter:
        return layer.ranks, cost_model.dense_cost(layer)
    *ranks, full = adapter_ranks(layer)
    return ranks, cost_model.costs(layer, [full])[0]


def _chosen(layer: LayerPlan, choice: Choice | None) -> LayerPlan | None:
    """Return the layer with a choice from its curve, whose last one is None; None if it stays as it is."""
    if layer.in_adapter:
        rank = layer.largest_rank if choice is None else choice.rank
        return replace(layer, rank=rank, candidates=()) if rank else None
    return None if choice is None else replace(layer.variants[choice.form], rank=choice.rank)


def _allocate(
    cost_model: CostModel, layers: Sequence[LayerPlan], curves: Mapping[int, RateCurve], known: Known
) -> Chosen | Undecided:
    """Return the factored layers, by number; no further step of any layer fits the budget."""
    fixed = {number: layer for number, layer in enumerate(layers) if isinstance(layer.rank, int)}
    best: dict[int, LayerPlan] = _cheapest(cost_model, layers)
    best_capacity = sum(curve.costs[0] for curve in curves.values())
    # The costs that no curve has: of other layers, other tensors, and headers.
    overhead = cost_model.total(fixed) - sum(cost_model.dense_cost(layers[number]) for number in curves)
    price = None
    for _ in range(MAX_ROUNDS):
        capacity = cost_model.limit - overhead
        if capacity < best_capacity:
            break
        if missing := _undecided(layers, curves, capacity, known):
            return missing
        price = lowest_price(list(curves.values()), capacity, near=price)
        allocated = allocate(list(curves.values()), capacity, price=price)
        chosen = fixed | {
            i: layer
            for i, curve in curves.items()
            if (layer := _chosen(layers[i], allocated[curve.name])) is not None
        }
        total = cost_model.total(chosen)
        if total <= cost_model.limit:
            best, best_capacity = chosen, capacity
        actual_overhead = total - sum(curve.cost(allocated[curve.name]) for curve in curves.values())
        if actual_overhead == overhead:
            break
        overhead = actual_overhead
    return best


def _undecided(
    layers: Sequence[LayerPlan], curves: Mapping[int, RateCurve], capacity: int, known: Known
) -> Undecided | None:
    exact = {
        curve.name: {form for form, each in enumerate(layers[i].variants) if known[curve.name].is_exact(each)}
        for i, curve in curves.items()
    }
    tensors = {layers[i].tensor: layers[i] for i in curves}
    if all(len(exact[name]) == len(layer.methods) for name, layer in tensors.items()):
        return None
    found = sorted(undecided(list(curves.values()), capacity, exact))
    forms = tuple((name, tensors[name].variants[form].form) for name, form in found)
    return Undecided(forms) if forms else None


def _rank_by_spectrum(layer: LayerPlan, cached: CachedSpectra) -> int | KeptReason | None:
    """Return the rank or the reason that a cached spectrum alone gives by a layer's rule, or None."""
    rule = layer.rank
    if not isinstance(rule, RankRule) or (rule.energy is None and rule.auto is None):
        return None
    for spectrum in cached.get(layer.tensor, ()):
        if rule.energy is not None:
            least = spectrum.rank_of_energy(rule.energy)
        elif rule.auto is not None:
            least = auto_rank(rule.auto, spectrum.values, layer.decomposed_shape, spectrum.roundoff)
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
