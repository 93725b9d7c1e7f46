"""Deciding what is done to each weight: tensors and spec in, a frozen plan out, nothing read or computed."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from schemas.format.errors import quoted
from schemas.format.tensor import FLOAT_DTYPES
from schemas.planning.calibration import GramInfo, calibrated
from schemas.planning.codecs import codec_for
from schemas.planning.forms import FORMS, FormOptions
from schemas.planning.layer import BIAS, WEIGHT, LayerPlan, Plan, Tensor
from schemas.problem import SpecError
from schemas.report import KeptReason
from schemas.spec import DEFAULT_EXCLUDE, DEFAULT_INCLUDE, CompressionSpec, Override, RankRule, SpecRule


def is_candidate(tensor: Tensor) -> bool:
    """Say whether a tensor could be factored at all: a floating matrix named `*.weight`."""
    return tensor.name.endswith(WEIGHT) and len(tensor.shape) == 2 and tensor.dtype in FLOAT_DTYPES


NO_OVERRIDE = Override(match="*")
FACTOR = re.compile(r"(?P<module>.*)\.[0-9]+\.weight")


def make_plan(
    tensors: Sequence[Tensor],
    spec: CompressionSpec,
    *,
    factored: Collection[str] = frozenset(),
    grams: Sequence[GramInfo] | None = None,
) -> Plan:
    """Decide for each tensor of a whole checkpoint, in order.

    Modules that are `factored` already stay as they are: a loader could not nest their factors. `grams` is
    what the calibration checkpoint holds, if there is one; what does not fit raises a `CalibrationError`.
    A `SpecError` is raised where no layer has a rank that `align` and `min_rank` allow.
    """
    taken = frozenset(tensor.name for tensor in tensors)
    tensors = [tensor for tensor in tensors if not _is_factor(tensor.name, factored)]
    layers = tuple(
        _plan_layer(tensor, spec, taken)
        for tensor in tensors
        if is_candidate(tensor) and _selected(_module(tensor), spec)
    )
    _check_ranks(layers, spec)
    warnings = tuple(_warnings(tensors, spec, layers))
    if grams is None:
        return Plan(layers, warnings)
    modules = {name.removesuffix(WEIGHT) for name in taken if name.endswith(WEIGHT)} | set(factored)
    return calibrated(Plan(layers, warnings), grams, modules)


def _is_factor(name: str, factored: Collection[str]) -> bool:
    found = FACTOR.fullmatch(name) if factored else None
    return found is not None and found["module"] in factored


def _module(tensor: Tensor) -> str:
    return tensor.name.removesuffix(WEIGHT)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _selected(module: str, spec: CompressionSpec) -> bool:
    return _matches(module, spec.include) and not _matches(module, spec.exclude)


def _plan_layer(tensor: Tensor, spec: CompressionSpec, taken: frozenset[str]) -> LayerPlan:
    name = _module(tensor)
    _, rule = _override(name, spec)
    options = FormOptions(rule.selector or spec.selector, (rule.cur or spec.cur).storage)
    transposed = _matches(name, spec.transposed)
    rows, columns = reversed(tensor.shape) if transposed else tensor.shape
    layer = LayerPlan(
        name=name,
        rows=rows,
        columns=columns,
        dtype=tensor.dtype,
        form=FORMS[rule.method or spec.method].of(options),
        codec=codec_for(spec.dtype, tensor.dtype),
        dense_layout=spec.layout == "dense",
        rank=None,
        reason=None,
        transposed=transposed,
        align=rule.align or spec.align,
        min_rank=rule.min_rank or spec.min_rank,
        weight=rule.weight or 1.0,
    )
    rank, reason = _rank(layer, rule.rank or spec.rank)
    if reason is None and not layer.dense_layout and _names_taken(layer, taken):
        rank, reason = None, "names_taken"
    return replace(layer, rank=rank, reason=reason)


def _rank(layer: LayerPlan, rank: int | RankRule) -> tuple[int | RankRule | None, KeptReason | None]:
    """Settle what the shape alone settles: a ratio goes down to a rank that is allowed, an integer up."""
    ranks = layer.ranks
    if isinstance(rank, RankRule) and rank.ratio is not None:
        most = layer.ratio_rank(rank.ratio)
        if most < ranks.start:
            return None, "rank_zero" if ranks else "no_saving"
        rank = most - most % layer.align
    elif isinstance(rank, int):
        rank = max(ranks.start, -(-rank // layer.align) * layer.align)
    if not ranks or (isinstance(rank, int) and rank not in ranks):
        return None, "no_saving"
    return rank, None


def _check_ranks(layers: Sequence[LayerPlan], spec: CompressionSpec) -> None:
    """Refuse an `align` or a `min_rank` that would keep everything dense."""
    best = max(layers, key=lambda layer: layer.break_even_rank, default=None)
    if best is None or best.break_even_rank == 0 or any(layer.ranks for layer in layers):
        return
    field = "align" if best.align > 1 else "min_rank"
    number, rule = _override(best.name, spec)
    raise SpecError(
        f"/{field}" if getattr(rule, field) is None else f"/overrides/{number}/{field}",
        f"No layer could be factored. The largest break-even rank is {best.break_even_rank}, that of "
        f"{quoted(best.name)}, but its ranks would be multiples of {best.align} from {best.ranks.start} on. "
        f"Lower {field}, so that there is one up to {best.break_even_rank}.",
    )


def _override(name: str, spec: CompressionSpec) -> tuple[int, Override]:
    matching = ((i, o) for i, o in enumerate(spec.overrides) if fnmatchcase(name, o.match))
    return next(matching, (-1, NO_OVERRIDE))


def _names_taken(layer: LayerPlan, taken: frozenset[str]) -> bool:
    names = {spec.name for spec in layer.stored_tensors(1)}
    if layer.name + BIAS in taken:
        names.add(layer.bias_name)
    return bool(names & taken)


def _warnings(tensors: Sequence[Tensor], spec: CompressionSpec, layers: Sequence[LayerPlan]) -> Iterable[str]:
    weights = [_module(tensor) for tensor in tensors if tensor.name.endswith(WEIGHT)]
    matrices = [_module(tensor) for tensor in tensors if is_candidate(tensor)]
    # What was not asked for is not warned of.
    asked_include = () if spec.include == DEFAULT_INCLUDE else spec.include
    asked_exclude = () if spec.exclude == DEFAULT_EXCLUDE else spec.exclude
    for field, patterns, names in (
        ("include", asked_include, matrices),
        ("exclude", asked_exclude, weights),
        ("overrides", tuple(o.match for o in spec.overrides), [layer.name for layer in layers]),
        ("transposed", spec.transposed, matrices),
    ):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                yield f"{field}: the pattern {pattern!r} matches no layer"
    if not layers:
        yield "no layer is selected: the output equals the input"
    elif all(layer.reason for layer in layers):
        yield "every selected layer stays dense: the output equals the input"
    yield from _idle(spec)
    asked_selector = spec.selector != CompressionSpec.model_fields["selector"].default
    if asked_selector and layers and all(layer.form.selector is None for layer in layers):
        yield f"selector: it has no effect on {' and '.join(sorted({layer.form.name for layer in layers}))}"


def _idle(spec: CompressionSpec) -> Iterable[str]:
    """Name what only a budget would heed."""
    has_budget = isinstance(spec.rank, SpecRule) and spec.rank.is_budget
    if spec.objective != "relative" and not has_budget:
        yield "objective: it has no effect without a budget"
    for override in spec.overrides:
        if override.weight is not None and not (has_budget and override.rank is None):
            beside = "beside a rank" if has_budget else "without a budget"
            yield f"overrides: the weight of {override.match!r} has no effect {beside}"
