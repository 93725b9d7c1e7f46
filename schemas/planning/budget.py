"""A budget over all layers: whether it can be met, and how it is spent once the spectra are known."""

import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isinf

from schemas.format.files import CheckpointFiles
from schemas.planning.allocation import RateCurve, allocate, make_rate_curve
from schemas.planning.cost import CostModel, Ranks, make_cost_model
from schemas.planning.layer import LayerPlan, Plan
from schemas.report import KeptReason
from schemas.spec import CompressionSpec, Objective, RankRule, SpecRule
from schemas.spectrum import Spectrum, first_accurate, squared_tails

# The digits of offsets and the like hang on all ranks together; what they cost is found by trying.
TRIALS = 5


def shares_budget(layer: LayerPlan) -> bool:
    """Say whether a layer's rank is for a budget to decide."""
    return isinstance(layer.rank, SpecRule) and layer.rank.is_budget


def check_budget(plan: Plan, spec: CompressionSpec, files: CheckpointFiles) -> None:
    """Refuse, with a `SpecError`, a budget that cannot be met whatever the spectra are."""
    if isinstance(spec.rank, SpecRule) and spec.rank.is_budget:
        _open_budget(spec.rank, plan.layers, files)


def spend(
    plan: Plan,
    spec: CompressionSpec,
    files: CheckpointFiles,
    spectra: Mapping[str, Sequence[float]],
    known: Mapping[str, int | KeptReason],
) -> Plan:
    """Give each layer that shares a budget its rank, or keep it dense; the other layers stay as planned.

    Parameters
    ----------
    plan
        What `make_plan` made of the spec.
    spec
        The spec; without a budget the plan comes back as it is.
    files
        The input, whose other tensors count where the budget is in bytes.
    spectra
        By tensor, all singular values at the weight's own scale, descending: of every layer that shares the
        budget and is not `known`.
    known
        By tensor, what came of layers: the rank of one that has a rule of its own, and the reason of one that
        turned out to stay dense.

    Raises
    ------
    SpecError
        If the budget cannot be met.
    """
    rule = spec.rank
    if not (isinstance(rule, SpecRule) and rule.is_budget):
        return plan
    spectra = {name: _finite(spectrum) for name, spectrum in spectra.items()}
    layers = tuple(settle(layer, known.get(layer.tensor)) for layer in plan.layers)
    cost_model = _open_budget(rule, layers, files)
    ranks = _allocate(cost_model, layers, _curves(cost_model, layers, spectra, spec.objective))
    settled = []
    for number, (planned, layer) in enumerate(zip(plan.layers, layers, strict=True)):
        shared = settle(layer, ranks.get(number, "kept_by_budget")) if shares_budget(layer) else layer
        settled.append(shared if shares_budget(planned) else planned)
    return replace(plan, layers=tuple(settled))


def settle(layer: LayerPlan, known: int | KeptReason | None) -> LayerPlan:
    """Return a layer with the rank or the reason that is known of it."""
    if known is None:
        return layer
    if isinstance(known, int):
        return replace(layer, rank=known, reason=None)
    return replace(layer, rank=None, reason=known)


def _open_budget(rule: SpecRule, layers: Sequence[LayerPlan], files: CheckpointFiles) -> CostModel:
    cost_model = make_cost_model(rule, layers, files)
    least = _cheapest_ranks(cost_model, layers)
    if cost_model.total(least) > cost_model.limit:
        raise cost_model.refusal(least)
    return cost_model


def _cheapest_ranks(cost_model: CostModel, layers: Sequence[LayerPlan]) -> dict[int, int]:
    """Return the ranks at which everything costs least."""
    ranks = {}
    for number, layer in enumerate(layers):
        first = layer.ranks[0] if isinstance(layer.rank, RankRule) else layer.rank
        if first is not None:
            cheaper = cost_model.costs(layer, [first])[0] < cost_model.dense_cost(layer)
            if cheaper or isinstance(layer.rank, int):
                ranks[number] = first
    return ranks


def _curves(
    cost_model: CostModel,
    layers: Sequence[LayerPlan],
    spectra: Mapping[str, Sequence[float]],
    objective: Objective,
) -> dict[int, RateCurve]:
    """Return what each layer that shares the budget loses at which cost, by number."""
    shared = {number: layer for number, layer in enumerate(layers) if shares_budget(layer)}
    largest = max((_scale(spectra[layer.tensor]) for layer in shared.values()), default=1.0)
    curves = {}
    for number, layer in shared.items():
        spectrum = spectra[layer.tensor]
        # In units of the largest value no square leaves the range of float64.
        tails = squared_tails(spectrum, _scale(spectrum) if objective == "relative" else largest)
        unit = layer.weight / (tails[0] or 1.0) if objective == "relative" else layer.weight
        ranks = layer.ranks
        errors = [unit * tails[rank] for rank in ranks]
        costs = cost_model.costs(layer, ranks)
        curves[number] = make_rate_curve(layer.tensor, ranks, costs, cost_model.dense_cost(layer), errors)
    return curves


def _scale(spectrum: Sequence[float]) -> float:
    return spectrum[0] or 1.0


def _finite(spectrum: Sequence[float]) -> Sequence[float]:
    """Take the largest double for what is larger."""
    return [min(value, sys.float_info.max) for value in spectrum] if isinf(spectrum[0]) else spectrum


def _allocate(cost_model: CostModel, layers: Sequence[LayerPlan], curves: Mapping[int, RateCurve]) -> Ranks:
    """Return the ranks of all layers that are factored: what is left over pays for no other step."""
    fixed = {number: layer.rank for number, layer in enumerate(layers) if isinstance(layer.rank, int)}
    best, most = _cheapest_ranks(cost_model, layers), sum(curve.costs[0] for curve in curves.values())
    unshared = cost_model.total(fixed) - sum(curve.costs[curve.dense] for curve in curves.values())
    for _ in range(TRIALS):
        room = cost_model.limit - unshared
        if room < most:
            break
        chosen = allocate(list(curves.values()), room)
        ranks = fixed | {i: rank for i, c in curves.items() if (rank := chosen[c.name]) is not None}
        total = cost_model.total(ranks)
        if total <= cost_model.limit:
            best, most = ranks, room
        found = total - sum(curve.cost(chosen[curve.name]) for curve in curves.values())
        if found == unshared:
            break
        unshared = found
    return best


# By tensor, the spectra that are known, each made more carefully than the one before.
Spectra = Mapping[str, Sequence[Spectrum]]


def resolve_ranks(plan: Plan, spec: CompressionSpec, files: CheckpointFiles, spectra: Spectra) -> Plan:
    """Settle every rank that the spectra settle, as the worker will.

    Raises
    ------
    SpecError
        If a budget turns out not to suffice.
    """
    layers = tuple(settle(layer, _by_energy(layer, spectra)) for layer in plan.layers)
    settled = replace(plan, layers=layers)
    needed = [layer for layer in layers if isinstance(layer.rank, RankRule)]
    careful = {
        layer.tensor: first_accurate(spectra.get(layer.tensor, ()), layer.num_vectors) for layer in needed
    }
    scaled = {tensor: spectrum.scaled() for tensor, spectrum in careful.items() if spectrum is not None}
    if not all(shares_budget(layer) and layer.tensor in scaled for layer in needed):
        return settled
    return spend(settled, spec, files, scaled, {})


def _by_energy(layer: LayerPlan, spectra: Spectra) -> int | KeptReason | None:
    if not isinstance(layer.rank, RankRule) or layer.rank.energy is None:
        return None
    for spectrum in spectra.get(layer.tensor, ()):
        least = spectrum.rank_of_energy(layer.rank.energy)
        if least is None:
            continue
        at = bisect_left(layer.ranks, least)
        if at == len(layer.ranks):
            return "no_saving"
        if spectrum.is_accurate_for(layer.ranks[at]):
            return layer.ranks[at]
    return None
