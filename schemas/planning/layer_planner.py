"""The plan of one layer: its rank by its shape, and what keeps it dense; layers of one kind share it."""

from collections.abc import Hashable
from dataclasses import replace
from math import prod

from schemas.format.encodings import EncodedWeight
from schemas.format.stacks import ExpertMatrix
from schemas.format.tensor import BIAS, WEIGHT
from schemas.planning.adapter import adapter_rank
from schemas.planning.codecs import KEEP
from schemas.planning.forms import Form
from schemas.planning.kernels import codec_of, kernel_reason
from schemas.planning.layer import LayerPlan, Tensor
from schemas.planning.layers import Layers
from schemas.planning.modules import Modules
from schemas.planning.selection import LayerOptions
from schemas.planning.stored import turned
from schemas.rank_rule import RankRule, budget_of
from schemas.report import KeptReason
from schemas.spec import CompressionSpec


class LayerPlanner:
    """Plans layers by a spec. Almost all is decided once for each kind of layer, of which there are few."""

    def __init__(self, spec: CompressionSpec, modules: Modules, layers: Layers, *, difference: bool) -> None:
        self._spec, self._modules, self._layers = spec, modules, layers
        self._difference = difference
        self.in_adapter = difference and spec.layout != "dense"
        self._known: dict[Hashable, int] = {}
        self._endings: dict[Hashable, tuple[tuple[frozenset[str], str], ...]] = {}

    def kind(self, tensor: Tensor, options: LayerOptions) -> int:
        """Return the number of a layer's kind, for the layers of the plan."""
        name = tensor.name.removesuffix(WEIGHT)
        is_lora = isinstance(tensor, EncodedWeight) and tensor.encoded.rank > 0
        structural = None if is_lora else self._modules.reason_to_keep(name)
        # PEFT reads a linear layer's factors, and passes over them where the module is an embedding.
        if structural is None and self.in_adapter and self._modules.is_embedding(name):
            structural = "embedding"
        shape = tensor.dtype, tensor.shape, options.number, options.transposed, _stored_as(tensor)
        taken: tuple[bool, ...] = ()
        # Whose factors' names are taken has other tensors below it. It is told as such all the same.
        if structural == "more_than_a_linear" and self._spec.layout == "factored":
            taken = self._taken(name, shape, tensor, options)
        key = (*shape, structural, taken)
        if key not in self._known:
            flags = taken or [False] * len(options.forms)
            planned = [
                self._plan(tensor, options, form, "names_taken" if is_taken else structural)
                for form, is_taken in zip(options.forms, flags, strict=True)
            ]
            self._known[key] = self._layers.kind_of(_of_possible(planned))
        return self._known[key]

    def _plan(
        self, tensor: Tensor, options: LayerOptions, form: Form, structural: KeptReason | None
    ) -> LayerPlan:
        layer = self._unranked(tensor, options, form)
        resolve = adapter_rank if layer.in_adapter else _rank
        rank, reason = resolve(layer, options.override.rank or self._spec.rank)
        if not layer.form.takes_width(layer.columns):
            rank, reason = None, "group"
        structural = structural or kernel_reason(layer, by_override=options.by_override)
        if structural is not None:
            rank, reason = None, structural
        return replace(layer, rank=rank, reason=reason)

    def _unranked(self, tensor: Tensor, options: LayerOptions, form: Form) -> LayerPlan:
        spec, override = self._spec, options.override
        outputs, inputs, *kernel = turned(tensor.shape) if options.transposed else tensor.shape
        return LayerPlan(
            name=tensor.name.removesuffix(WEIGHT),
            rows=outputs,
            columns=inputs * prod(kernel),
            dtype=tensor.dtype,
            form=form,
            codec=codec_of(_factor_dtype(tensor, spec), tensor.dtype, tuple(kernel)),
            dense_layout=spec.layout == "dense",
            rank=None,
            reason=None,
            transposed=options.transposed,
            align=override.align or spec.align,
            min_rank=override.min_rank or spec.min_rank,
            importance=override.weight or 1.0,
            difference=self._difference,
            kernel=tuple(kernel),
            encoded=tensor.encoded if isinstance(tensor, EncodedWeight) else None,
            expert=tensor.expert if isinstance(tensor, ExpertMatrix | EncodedWeight) else None,
        )

    def _taken(self, module: str, shape: Hashable, tensor: Tensor, options: LayerOptions) -> tuple[bool, ...]:
        """Return for each form whether the checkpoint has the name of a factor, or of a new bias, already."""
        if shape not in self._endings:
            layers = [self._unranked(tensor, options, form) for form in options.forms]
            self._endings[shape] = tuple(map(_new_endings, layers))
        has_below = self._modules.has_below
        has_bias = has_below(module, BIAS)
        return tuple(
            any(has_below(module, ending) for ending in (endings if has_bias else endings - {bias}))
            for endings, bias in self._endings[shape]
        )


def _stored_as(tensor: Tensor) -> Hashable:
    """Return how a weight is stored that is no tensor of its own; None for any other."""
    if isinstance(tensor, EncodedWeight):
        return tensor.encoded, tensor.expert
    return tensor.expert if isinstance(tensor, ExpertMatrix) else None


def _factor_dtype(tensor: Tensor, spec: CompressionSpec) -> str:
    """Return the spec's dtype, unless products are put back into a stack, which has one."""
    in_stack = isinstance(tensor, ExpertMatrix) and spec.layout == "dense"
    return KEEP if in_stack else spec.dtype


def _new_endings(layer: LayerPlan) -> tuple[frozenset[str], str]:
    """Return how the names end of what replaces a weight and its bias, and the one that needs a bias."""
    stored = {tensor.name.removeprefix(layer.name) for tensor in layer.stored_tensors(1)}
    bias = layer.bias_name.removeprefix(layer.name)
    # A form may store under the names of what it replaces.
    return frozenset({*stored, bias} - {WEIGHT, BIAS}), "" if bias in stored else bias


def _of_possible(planned: list[LayerPlan]) -> LayerPlan:
    """Return the plan of a layer; of several forms, those that are possible are left for the budget."""
    possible = [layer for layer in planned if layer.reason is None]
    if len(possible) < 2:
        return possible[0] if possible else planned[0]
    return replace(possible[0], candidates=tuple(layer.form for layer in possible))


def _rank(layer: LayerPlan, rank: int | RankRule | None) -> tuple[int | RankRule | None, KeptReason | None]:
    """Resolve a rank that depends on the shape alone; a ratio is rounded down, an integer up."""
    ranks = layer.ranks
    if not layer.form.has_ranks and budget_of(rank) is None:
        rank = 0
    if isinstance(rank, RankRule) and rank.ratio is not None:
        most = layer.ratio_rank(rank.ratio)
        if most < ranks.start:
            return None, "rank_zero" if ranks else "no_saving"
        rank = most - most % layer.align
    elif isinstance(rank, int):
        rank = max(ranks.start, layer.rounded_up(rank))
    if not ranks or (isinstance(rank, int) and rank not in ranks):
        return None, "no_saving"
    return rank, None
