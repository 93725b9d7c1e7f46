"""Make the plan of a checkpoint from its headers and a spec; no weight is read."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from schemas.format.errors import listed, quoted
from schemas.format.tensor import FLOAT_DTYPES
from schemas.planning.adapter import adapter_rank, check_adapter
from schemas.planning.calibration import Calibration, mark_calibrated
from schemas.planning.codecs import codec_for
from schemas.planning.difference import check_base, check_layout
from schemas.planning.distortion import objective_warnings
from schemas.planning.forms import Form
from schemas.planning.layer import BIAS, WEIGHT, LayerPlan, Plan, Tensor
from schemas.planning.left_out import left_out_warnings
from schemas.planning.modules import Modules
from schemas.planning.override_warnings import override_warnings
from schemas.planning.pairs import PairFinder, check_neuron_grams
from schemas.planning.patterns import Patterns
from schemas.planning.selection import LayerOptions, Selection, can_be_factored, is_float_weight
from schemas.problem import SpecError
from schemas.rank_rule import RankRule, budget_of
from schemas.report import KeptReason
from schemas.spec import DEFAULT_EXCLUDE, DEFAULT_GROUP, DEFAULT_INCLUDE, CompressionSpec

FACTOR_NAME = re.compile(r"(?P<module>.*)\.[0-9]+\.weight")
NO_ALIASES: Mapping[str, str] = MappingProxyType({})


def make_plan(
    tensors: Sequence[Tensor],
    spec: CompressionSpec,
    *,
    factored: Collection[str] = frozenset(),
    aliases: Mapping[str, str] = NO_ALIASES,
    content_hashes: Sequence[str] = (),
    calibration: Calibration | None = None,
    base: Sequence[Tensor] | None = None,
) -> Plan:
    """Plan all selected weights of a checkpoint.

    Parameters
    ----------
    tensors
        All tensors of the checkpoint, since names must not collide across files.
    spec
        The spec.
    factored
        The modules that are factored already. They stay as they are: a loader could not nest factors.
    aliases
        The metadata entries that name a tensor for one that is not stored.
    content_hashes
        The metadata entries that no longer hold if a tensor changes.
    calibration
        The statistics of the layers, if there are any.
    base
        The tensors of the base, if the difference to it is to be factored.

    Raises
    ------
    MisfitError
        If the calibration or the base does not fit the checkpoint.
    SpecError
        If no layer has a rank that `align` and `min_rank` allow, or the layout does not fit the job.
    """
    check_layout(spec, has_base=base is not None)
    base_warnings = () if base is None else check_base(tensors, base)
    modules = Modules(tensors, aliases)
    selection = Selection(spec, modules)
    unselected = {tensor.name: "factored_before" for tensor in tensors if _is_factor(tensor.name, factored)}
    tensors_left = [tensor for tensor in tensors if tensor.name not in unselected]
    options = {t.name: selection.options(_module(t)) for t in tensors_left if is_float_weight(t)}
    members, pair_warnings = PairFinder(
        spec, tensors_left, modules, lambda module: options[module + WEIGHT].transposed
    ).find()
    in_pairs = {layer.tensor: layer for layer in members}
    factorable, layers = [], []
    for tensor in tensors_left:
        own = options.get(tensor.name)
        if tensor.name in in_pairs:
            factorable.append(tensor)
            layers.append(in_pairs[tensor.name])
            continue
        if own is None or not can_be_factored(tensor, own.forms, transposed=own.transposed):
            unselected[tensor.name] = selection.shape_rule(tensor)
            continue
        factorable.append(tensor)
        if (rule := selection.pattern_rule(_module(tensor))) is not None:
            unselected[tensor.name] = rule
        else:
            layers.append(_plan_layer(tensor, spec, own, modules, difference=base is not None))
    plan = Plan(tuple(layers), (), unselected, adapter=spec.layout == "adapter")
    if plan.adapter:
        check_adapter(layers, [_form_pointer(options[layer.tensor]) for layer in layers])
    else:
        _check_ranks([layer for layer in layers if layer.pair is None], options)
    warnings = (*_warnings(tensors_left, factorable, spec, plan, options), *left_out_warnings(tensors, plan))
    if content_hashes and any(layer.reason is None for layer in layers):
        warnings += (f"metadata: left out, since they are digests of the input: {', '.join(content_hashes)}",)
    plan = replace(plan, warnings=(*warnings, *pair_warnings, *base_warnings))
    if calibration is not None:
        biases = {} if spec.bias == "keep" else _correctable_biases(tensors, aliases)
        plan = mark_calibrated(plan, calibration, modules.with_weight | set(factored), biases)
    plan = replace(plan, warnings=(*plan.warnings, *objective_warnings(spec, plan)))
    check_neuron_grams(plan)
    return plan


def would_be_factored(
    asked: Iterable[Tensor],
    tensors: Sequence[Tensor],
    spec: CompressionSpec,
    *,
    factored: Collection[str] = frozenset(),
    aliases: Mapping[str, str] = NO_ALIASES,
) -> frozenset[str]:
    """Return which of the tensors asked for a plan would factor; `tensors` are all of the checkpoint.

    It costs little where few are asked for, however many there are.
    """
    modules = Modules(tensors, aliases)
    selection = Selection(spec, modules)

    def is_factored(tensor: Tensor) -> bool:
        if not is_float_weight(tensor) or _is_factor(tensor.name, factored):
            return False
        own = selection.options(_module(tensor))
        if not can_be_factored(tensor, own.forms, transposed=own.transposed):
            return False
        if selection.pattern_rule(_module(tensor)) is not None:
            return False
        return _plan_layer(tensor, spec, own, modules, difference=False).reason is None

    return frozenset(tensor.name for tensor in asked if is_factored(tensor))


def _correctable_biases(tensors: Iterable[Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the biases that belong to one module alone, by name."""
    shared = frozenset(aliases.values())
    return {
        tensor.name: tensor
        for tensor in tensors
        if tensor.name.endswith(BIAS) and tensor.dtype in FLOAT_DTYPES and tensor.name not in shared
    }


def _is_factor(name: str, factored: Collection[str]) -> bool:
    found = FACTOR_NAME.fullmatch(name) if factored else None
    return found is not None and found["module"] in factored


def _module(tensor: Tensor) -> str:
    return tensor.name.removesuffix(WEIGHT)


def _plan_layer(
    tensor: Tensor, spec: CompressionSpec, options: LayerOptions, modules: Modules, *, difference: bool
) -> LayerPlan:
    """Plan a layer; of several forms, those that are possible are left for the budget to choose from."""
    planned = [
        _plan_form(tensor, spec, options, modules, form, difference=difference) for form in options.forms
    ]
    possible = [layer for layer in planned if layer.reason is None]
    if len(possible) < 2:
        return possible[0] if possible else planned[0]
    return replace(possible[0], candidates=tuple(layer.form for layer in possible))


def _plan_form(
    tensor: Tensor,
    spec: CompressionSpec,
    options: LayerOptions,
    modules: Modules,
    form: Form,
    *,
    difference: bool,
) -> LayerPlan:
    name, override = _module(tensor), options.override
    rows, columns = reversed(tensor.shape) if options.transposed else tensor.shape
    layer = LayerPlan(
        name=name,
        rows=rows,
        columns=columns,
        dtype=tensor.dtype,
        form=form,
        codec=codec_for(spec.dtype, tensor.dtype),
        dense_layout=spec.layout == "dense",
        rank=None,
        reason=None,
        transposed=options.transposed,
        align=override.align or spec.align,
        min_rank=override.min_rank or spec.min_rank,
        importance=override.weight or 1.0,
        difference=difference,
    )
    resolve = adapter_rank if layer.in_adapter else _rank
    rank, reason = resolve(layer, override.rank or spec.rank)
    if not layer.form.takes_width(layer.columns):
        rank, reason = None, "group"
    structural = modules.reason_to_keep(name)
    # PEFT reads a linear layer's factors, and passes over them where the module is an embedding.
    if structural is None and layer.in_adapter and modules.is_embedding(name):
        structural = "embedding"
    # What collides is told as such, though a module whose factors' names are taken has other tensors too.
    may_collide = spec.layout == "factored" and structural in {None, "more_than_a_linear"}
    if may_collide and _names_taken(layer, modules):
        structural = "names_taken"
    if structural is not None:
        rank, reason = None, structural
    return replace(layer, rank=rank, reason=reason)


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


def _check_ranks(layers: Sequence[LayerPlan], options: Mapping[str, LayerOptions]) -> None:
    """Refuse an `align` or a `min_rank` that no layer can meet."""
    best = max(layers, key=lambda layer: layer.break_even_rank, default=None)
    if best is None or best.break_even_rank == 0 or any(layer.ranks for layer in layers):
        return
    field = "align" if best.align > 1 else "min_rank"
    own = options[best.tensor]
    raise SpecError(
        f"/{field}" if getattr(own.override, field) is None else f"/overrides/{own.number}/{field}",
        f"No layer can be factored. The largest break-even rank is {best.break_even_rank}, that of "
        f"{quoted(best.name)}, but its allowed ranks are multiples of {best.align} from {best.ranks.start} "
        f"on. Lower {field}, so that a rank up to {best.break_even_rank} is allowed.",
    )


def _form_pointer(options: LayerOptions) -> str:
    """Return the pointer to the field that chose the form of a layer."""
    for field in ("method", "cur"):
        if getattr(options.override, field) is not None:
            return f"/overrides/{options.number}/{field}"
    return "/method"


def _names_taken(layer: LayerPlan, modules: Modules) -> bool:
    """Return whether the checkpoint has a tensor with the name of a factor already."""
    new_names = {tensor.name for tensor in layer.stored_tensors(1)}
    if layer.name + BIAS in modules:
        new_names.add(layer.bias_name)
    # A form may store under the names of what it replaces.
    return any(name in modules for name in new_names - {layer.tensor, layer.name + BIAS})


def _warnings(
    tensors: Sequence[Tensor],
    factorable: Sequence[Tensor],
    spec: CompressionSpec,
    plan: Plan,
    options: Mapping[str, LayerOptions],
) -> Iterable[str]:
    layers = plan.layers
    weights = [_module(tensor) for tensor in tensors if tensor.name.endswith(WEIGHT)]
    matrices = [_module(tensor) for tensor in factorable]
    # Defaults that match nothing are no mistake of the user's.
    given_include = () if spec.include == DEFAULT_INCLUDE else spec.include
    given_exclude = tuple(pattern for pattern in spec.exclude if pattern not in DEFAULT_EXCLUDE)
    alone = [layer for layer in layers if layer.pair is None]
    idle: dict[str, list[int]] = {}
    for field, patterns, names in (
        ("include", given_include, matrices),
        ("exclude", given_exclude, weights),
        ("overrides", tuple(o.match for o in spec.overrides), [layer.name for layer in alone]),
        ("transposed", spec.transposed, matrices),
    ):
        idle[field] = Patterns(patterns).idle(names)
        for number in idle[field]:
            yield f"{field}: the pattern {patterns[number]!r} matches no layer"
    if inferred := [layer.name for layer in layers if options[layer.tensor].inferred]:
        yield f"transposed: taken as stored [inputs, outputs], since biases say so: {listed(inferred)}"
    if layers and all(layer.reason for layer in layers):
        yield "every selected layer stays dense: the output equals the input"
    yield from _budget_warnings(spec)
    yield from override_warnings(spec, alone, options, idle=set(idle["overrides"]))
    yield from _rank_warnings(spec, alone, options)
    has_selector = spec.selector != CompressionSpec.model_fields["selector"].default
    if has_selector and layers and all(layer.form.selector is None for layer in layers):
        yield f"selector: it has no effect on {_joined_methods(layers)}"


def _rank_warnings(
    spec: CompressionSpec, layers: Sequence[LayerPlan], options: Mapping[str, LayerOptions]
) -> Iterable[str]:
    """Warn of a rank that all layers leave aside that it is for, since their forms have none."""
    ruled = [layer for layer in layers if options[layer.tensor].override.rank is None]
    # With pairs, a rank is the share of their neurons.
    is_given = spec.rank is not None and budget_of(spec.rank) is None and spec.pairs is None
    if is_given and ruled and not any(layer.form.has_ranks for layer in ruled):
        yield f"rank: it has no effect on {_joined_methods(ruled)}"
    quantizers = [each.form.quantizer for layer in layers for each in layer.variants]
    if spec.group != DEFAULT_GROUP and layers and not any(each and each.group for each in quantizers):
        yield f"group: it has no effect on {_joined_methods(layers)}"


def _joined_methods(layers: Iterable[LayerPlan]) -> str:
    return " and ".join(sorted({method for layer in layers for method in layer.methods}))


def _budget_warnings(spec: CompressionSpec) -> Iterable[str]:
    """Warn about options that have no effect without a budget."""
    has_budget = budget_of(spec.rank) is not None
    if spec.objective is not None and not has_budget:
        yield "objective: it has no effect without a budget"
    for override in spec.overrides:
        if override.weight is not None and not (has_budget and override.rank is None):
            why = "together with a rank" if has_budget else "without a budget"
            yield f"overrides: the weight of {override.match!r} has no effect {why}"
