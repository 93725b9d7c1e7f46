"""Find out about the singular values of layers that share a budget: norms first, then what decides."""

import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch

from schemas.planning.distortion import LayerSpectra, Norms, finite
from schemas.planning.forms import Form
from schemas.planning.layer import LayerPlan
from schemas.planning.stored import TWO_FACTORS
from schemas.report import KeptReason
from schemas.spectrum import Spectrum, first_accurate
from worker.context import JobContext, LayerInputs
from worker.executor import LayerExecutor
from worker.forms import FORM_IMPLEMENTATIONS, FormInputs
from worker.layer import is_unchanged
from worker.layer_cache import LayerCache
from worker.lowrank import Kept, Reason, Statistics, WeightedNorms, decompose
from worker.lowrank.scale import exponent_of
from worker.work_plan import LayerTask

# All singular values of what is decomposed, or the reason why the layer stays dense.
SpectrumOrReason = Sequence[float] | KeptReason
NormsOrReason = Mapping[str, Norms] | KeptReason


class SpectraFinder:
    """Finds spectra and norms of a job's layers as they are needed, or why a layer stays dense."""

    def __init__(self, context: JobContext) -> None:
        assert context.cache is not None
        self._context, self._cache = context, context.cache
        self._spectra: dict[str, dict[str, Sequence[float]]] = {}
        self._norms: dict[str, Mapping[str, Norms]] = {}
        self._possible: dict[str, LayerPlan] = {}
        self.reasons: dict[str, KeptReason] = {}

    def possible(self, layer: LayerPlan) -> LayerPlan:
        """Return a layer with those of its forms that its weight allows."""
        return self._possible.get(layer.tensor, layer)

    @property
    def known(self) -> dict[str, LayerSpectra]:
        """What is known of each layer that has no reason to stay dense, by tensor."""
        names = (self._spectra.keys() | self._norms.keys()) - self.reasons.keys()
        return {name: LayerSpectra(self._spectra.get(name, {}), self._norms.get(name, {})) for name in names}

    def begin(self, tasks: Sequence[LayerTask]) -> None:
        """Find the norms where forms must be compared or weights are rounded, else the spectra."""
        compared = [task for task in tasks if _needs_norms(task.layer)]
        found = LayerExecutor(self._context.device).run(compared, NormsPass(self._context, self._cache))
        for task in compared:
            norms = found[task.number]
            if isinstance(norms, str):
                self.reasons[task.layer.tensor] = norms
            else:
                self._norms[task.layer.tensor] = norms
                self._possible[task.layer.tensor] = possible = _with_known_norms(task.layer, norms)
                if possible.reason is not None:
                    self.reasons[task.layer.tensor] = possible.reason
        self.decompose(
            (task, task.layer.form)
            for task in tasks
            if not task.layer.candidates and task.layer.form.has_ranks
        )

    def decompose(self, pairs: Iterable[tuple[LayerTask, Form]]) -> None:
        """Decompose what these forms store factors of; no vectors stay in memory."""
        variants = [replace(task, layer=_widest(task.layer, form)) for task, form in pairs]
        missing = sorted(
            (task for task in variants if task.layer.tensor not in self.reasons),
            key=lambda task: (task.layer.decomposed, task.number),
        )
        for decomposed, group in groupby(missing, key=lambda task: task.layer.decomposed):
            tasks = list({task.number: task for task in group}.values())
            for number, result in self._decompose(tasks).items():
                tensor = next(task.layer.tensor for task in tasks if task.number == number)
                if isinstance(result, str):
                    self.reasons[tensor] = result
                else:
                    self._spectra.setdefault(tensor, {})[decomposed] = finite(result)

    def _decompose(self, tasks: Sequence[LayerTask]) -> dict[int, SpectrumOrReason]:
        """Decompose the layers that are not in the cache, for example from an attempt that was killed."""
        results: dict[int, SpectrumOrReason] = {}
        for task in tasks:
            spectrum = first_accurate(self._cache.spectra(task), task.layer.num_vectors)
            if spectrum is not None:
                results[task.number] = spectrum.scaled()
                self._context.progress.end_decomposition(task)
        todo = [task for task in tasks if task.number not in results]
        return results | LayerExecutor(self._context.device).run(
            todo, DecomposePass(self._context, self._cache)
        )


def _with_known_norms(layer: LayerPlan, norms: Mapping[str, Norms]) -> LayerPlan:
    """Return a layer without the forms that cannot round its weight, and so have no norms."""
    if not layer.candidates:
        return layer
    forms = tuple(each.form for each in layer.variants if each.decomposed in norms)
    if not forms:
        return replace(layer, rank=None, reason="out_of_range")
    return replace(layer, form=forms[0], candidates=forms if len(forms) > 1 else ())


def _widest(layer: LayerPlan, form: Form) -> LayerPlan:
    """Return the layer with that form which needs most singular vectors of what the given one decomposes."""
    decomposed = layer.with_form(form).decomposed
    same = (each for each in layer.variants if each.form.has_ranks and each.decomposed == decomposed)
    return max(same, key=lambda each: each.num_vectors)


def _needs_norms(layer: LayerPlan) -> bool:
    return bool(layer.candidates) or layer.form.quantizer is not None


def _form_inputs(
    layer: LayerPlan, inputs: LayerInputs, statistics: Statistics | None, context: JobContext
) -> FormInputs:
    return FormInputs(
        layer=layer,
        weight=inputs.weight.to(context.device),
        statistics=statistics,
        correct_bias=layer.corrects_bias,
        dtype=torch.float32,
        seed=context.seed,
    )


def _spectrum(layer: LayerPlan, inputs: LayerInputs, context: JobContext) -> SpectrumOrReason:
    """Return what tells the error of a form that decomposes no one matrix, or why the layer stays dense."""
    if exponent_of(inputs.weight) is None:
        return Reason.NOT_FINITE.value
    find = FORM_IMPLEMENTATIONS[layer.form.name].spectrum
    assert find is not None
    found = find(_form_inputs(layer, inputs, None, context))
    return found.reason.value if isinstance(found, Kept) else found.tolist()


def _decomposed(
    layer: LayerPlan, inputs: LayerInputs, statistics: Statistics | None, context: JobContext
) -> torch.Tensor | Kept:
    """Return the matrix that the layer's form decomposes, or why the layer stays dense."""
    form_inputs = _form_inputs(layer, inputs, statistics, context)
    matrix = FORM_IMPLEMENTATIONS[layer.form.name].decomposed(form_inputs)
    is_finite = isinstance(matrix, Kept) or exponent_of(matrix) is not None
    return matrix if is_finite else Kept(reason=Reason.NOT_FINITE)


@dataclass(frozen=True, slots=True)
class NormsPass:
    """Measures the norms of each layer's weight, and of what each of its forms rounds off."""

    context: JobContext
    cache: LayerCache

    def read(self, task: LayerTask) -> LayerInputs | None:
        """Read the layer unless all its norms are in the cache."""
        known = all(self.cache.norms(task, each) is not None for each in _measured(task.layer))
        return None if known else self.context.read(task)

    def compute(
        self, task: LayerTask, inputs: LayerInputs | None
    ) -> tuple[NormsOrReason, Callable[[], None] | None]:
        self.context.progress.begin(task)
        if inputs is None:
            known = {each: self.cache.norms(task, each) for each in _measured(task.layer)}
            return {each: norms for each, norms in known.items() if norms is not None}, None
        if is_unchanged(task, inputs):
            return "unchanged", None
        found: dict[str, Norms] = {}
        # Prepared once for all forms.
        statistics = inputs.statistics_on(self.context.device)
        norms = WeightedNorms(statistics, self.context.device)
        for decomposed, layer in _measured(task.layer).items():
            matrix = _decomposed(layer, inputs, statistics, self.context)
            if isinstance(matrix, Kept):
                # Another form may be possible, but for a weight that is at fault itself.
                if not layer.form.quantizer or not task.layer.candidates:
                    return matrix.reason.value, None
                continue
            found[decomposed] = Norms(*finite(norms.of(matrix)))
        return found, partial(self.cache.store_norms, task, found)

    def write(
        self,
        task: LayerTask,  # noqa: ARG002 - all passes have it
        result: tuple[NormsOrReason, Callable[[], None] | None],
    ) -> NormsOrReason:
        norms, store = result
        if store is not None:
            store()
        return norms


def _measured(layer: LayerPlan) -> dict[str, LayerPlan]:
    """Return the layer with one form for each matrix whose norms are needed, the weight itself first."""
    plain = layer.with_form(TWO_FACTORS)
    return {plain.decomposed: plain} | {each.decomposed: each for each in layer.variants}


@dataclass(frozen=True, slots=True)
class DecomposePass:
    """Decomposes each layer and caches the decomposition for the pass that factors it."""

    context: JobContext
    cache: LayerCache

    def read(self, task: LayerTask) -> LayerInputs:
        return self.context.read(task)

    def compute(
        self, task: LayerTask, inputs: LayerInputs
    ) -> tuple[SpectrumOrReason, Callable[[], None] | None]:
        self.context.progress.begin(task)
        assert inputs.cached is not None
        if is_unchanged(task, inputs):
            return "unchanged", None
        begun = time.perf_counter()
        statistics = inputs.statistics_on(self.context.device)
        if not task.layer.form.has_decomposition:
            return _spectrum(task.layer, inputs, self.context), None
        matrix = _decomposed(task.layer, inputs, statistics, self.context)
        if isinstance(matrix, Kept):
            return matrix.reason.value, None
        found = decompose(
            matrix,
            num_vectors=task.layer.num_vectors,
            cache=inputs.cached,
            statistics=statistics,
            correct_bias=task.layer.corrects_bias,
        )
        if isinstance(found, Kept):
            return found.reason.value, None
        exponent = exponent_of(matrix)
        assert exponent is not None  # or it could not have been decomposed
        values = array("d", found.singular_values.tolist())
        # A layer with several forms may need several decompositions.
        before_s = self.cache.decomposed_s.get(task.number, 0.0)
        self.cache.decomposed_s[task.number] = before_s + time.perf_counter() - begun
        return Spectrum(values, exponent, found.roundoff).scaled(), partial(inputs.cached.write, exponent)

    def write(
        self, task: LayerTask, result: tuple[SpectrumOrReason, Callable[[], None] | None]
    ) -> SpectrumOrReason:
        spectrum_or_reason, store = result
        if store is not None:
            store()
        self.context.progress.end_decomposition(task)
        return spectrum_or_reason
