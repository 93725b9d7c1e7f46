"""What is known of a job before it is done: the ranks that follow from spectra of earlier jobs."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

from schemas.budget import came_to, shares_budget, spend
from schemas.compression import CompressionSpec
from schemas.outputsize import InputFiles
from schemas.plan import LayerPlan, Plan
from schemas.rankrules import RankRule
from schemas.report import KeptReason
from schemas.spectrum import Spectrum, careful_enough

# By tensor, the spectra that are known, each made more carefully than the one before.
Spectra = Mapping[str, Sequence[Spectrum]]


def foreseen(plan: Plan, spec: CompressionSpec, files: InputFiles, spectra: Spectra) -> Plan:
    """Settle every rank that the spectra settle, as the worker will.

    Raises
    ------
    SpecError
        If a budget turns out not to suffice.
    """
    layers = tuple(came_to(layer, _by_energy(layer, spectra)) for layer in plan.layers)
    settled = replace(plan, layers=layers)
    needed = [layer for layer in layers if isinstance(layer.rank, RankRule)]
    careful = {layer.tensor: careful_enough(spectra.get(layer.tensor, ()), layer.extent) for layer in needed}
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
        if spectrum.resolves(layer.ranks[at]):
            return layer.ranks[at]
    return None
