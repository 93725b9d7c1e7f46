"""The error of a layer at each form and rank, from its singular values or from bounds on them."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isinf, sqrt
from statistics import median

from schemas.format.errors import listed
from schemas.planning.layer import LayerPlan
from schemas.planning.layers import Plan
from schemas.rank_rule import budget_of
from schemas.spec import CompressionSpec, Objective
from schemas.spectrum import squared_tails


@dataclass(frozen=True, slots=True)
class Norms:
    """(Σσ²)^½ and (Σσ⁴)^¼ over all singular values of a matrix: they bound what a rank can gain."""

    frobenius: float
    schatten4: float


@dataclass(frozen=True, slots=True)
class LayerSpectra:
    """What is known of a layer, by `LayerPlan.decomposed`: singular values, descending, or their norms.

    `norms` also has those of the weight itself, by `LayerPlan.norm_of`.
    """

    spectra: Mapping[str, Sequence[float]] = field(default_factory=dict)
    norms: Mapping[str, Norms] = field(default_factory=dict)

    def norm(self, decomposed: str) -> float:
        """Return (Σσ²)^½."""
        if (known := self.norms.get(decomposed)) is not None:
            return known.frobenius
        values = self.spectra[decomposed]
        scale = (values[0] if len(values) else 0.0) or 1.0
        return min(scale * sqrt(squared_tails(values, scale)[0]), sys.float_info.max)

    def is_exact(self, layer: LayerPlan) -> bool:
        """Whether the errors of a layer's form are known exactly."""
        return not layer.form.has_ranks or layer.decomposed in self.spectra

    def errors(self, layer: LayerPlan, ranks: Sequence[int], scale: float) -> list[float]:
        """Return the squared error at each rank of the layer's form, in units of scale².

        Where only norms are known, a rank k gains at most k^½ times Schatten's 4-norm squared (Cauchy and
        Schwarz), so the errors are lower bounds. Rounding factors costs a share of what they hold.
        """
        known = self.spectra.get(layer.decomposed)
        if known is not None and layer.form.has_ranks:
            tails = squared_tails(known, scale)
            total, left = tails[0], [tails[rank] for rank in ranks]
        else:
            norms = self.norms[layer.decomposed]
            total, most = (norms.frobenius / scale) ** 2, (norms.schatten4 / scale) ** 2
            left = [max(0.0, total - most * sqrt(rank)) for rank in ranks]
        if not layer.codec.rounding:
            return left
        shares = (layer.form.rounding(layer.codec.rounding, rank) for rank in ranks)
        return [error + share * (total - error) for error, share in zip(left, shares, strict=True)]


def objective_of(spec: CompressionSpec, plan: Plan) -> Objective:
    """Return what a budget minimizes: the loss, if it is known of layers with half of the parameters."""
    if spec.objective is not None:
        return spec.objective
    shared = _sharing(plan)
    known = sum(layer.parameters_before for layer in shared if layer.has_loss)
    return "loss" if shared and 2 * known >= sum(layer.parameters_before for layer in shared) else "relative"


def objective_warnings(spec: CompressionSpec, plan: Plan) -> Iterable[str]:
    """Warn where only some layers, or none, have what a predicted loss needs."""
    shared = _sharing(plan)
    without = [layer.name for layer in shared if not layer.has_loss]
    if spec.objective == "loss" and shared and len(without) == len(shared):
        yield "objective: relative errors and no losses, since no layer has both Gram matrices"
    if spec.objective is None and 0 < len(without) < len(shared):
        lack = f"the calibration lacks one of the two Gram matrices of {listed(without)}"
        if objective_of(spec, plan) == "loss":
            yield f"objective: loss; {lack}, whose loss is guessed from the others'; exclude what is not used"
        else:
            yield f"objective: relative and not loss, since {lack}; exclude such layers, or ask for loss"


def _sharing(plan: Plan) -> list[LayerPlan]:
    if all(budget_of(layer.rank) is None for layer, _ in plan.counted()):
        return []
    return [layer for layer in plan.layers if budget_of(layer.rank) is not None]


def units(
    layers: Mapping[int, LayerPlan], known: Mapping[str, LayerSpectra], objective: Objective
) -> dict[int, tuple[float, float]]:
    """Return of each layer the scale for its errors, and the factor for errors in units of its square.

    No square of a value in units of the scale exceeds the range of float64. Under `loss`, to lose a layer
    without both Gram matrices counts as much as the median of the others.
    """
    sizes = {number: known[layer.tensor].norm(layer.norm_of) or 1.0 for number, layer in layers.items()}
    if objective == "relative":
        return {number: (sizes[number], layer.importance) for number, layer in layers.items()}
    largest = max(sizes.values(), default=1.0)
    if objective == "absolute":
        return {number: (largest, layer.importance) for number, layer in layers.items()}
    losses = {number: sizes[number] for number, layer in layers.items() if layer.has_loss}
    largest = max(losses.values(), default=1.0)
    typical = median((size / largest) ** 2 for size in losses.values()) if losses else 1.0
    return {
        number: (largest, layer.importance) if layer.has_loss else (sizes[number], layer.importance * typical)
        for number, layer in layers.items()
    }


def finite(spectrum: Sequence[float]) -> Sequence[float]:
    """Replace infinite values by the largest double."""
    if len(spectrum) and isinf(spectrum[0]):
        return [min(value, sys.float_info.max) for value in spectrum]
    return spectrum
