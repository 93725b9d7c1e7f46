"""Make the plan of a checkpoint from its headers and a spec; no weight is read."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from schemas.format.errors import quoted
from schemas.format.tensor import FLOAT_DTYPES
from schemas.planning.calibration import GramInfo, mark_calibrated
from schemas.planning.codecs import codec_for
from schemas.planning.forms import FORMS, Form, FormOptions
from schemas.planning.layer import BIAS, WEIGHT, LayerPlan, Plan, Tensor
from schemas.problem import SpecError
from schemas.report import KeptReason
from schemas.spec import DEFAULT_EXCLUDE, DEFAULT_INCLUDE, CompressionSpec, Override, RankRule, budget_of

NO_OVERRIDE = Override(match="*")
FACTOR_NAME = re.compile(r"(?P<module>.*)\.[0-9]+\.weight")


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """The options of a spec for one layer: its override, its form, and whether its weight is transposed."""

    override: Override
    form: Form
    transposed: bool


def can_be_factored(tensor: Tensor, form: Form, *, transposed: bool = False) -> bool:
    """Return whether a tensor is a weight of floats, named `*.weight`, to which the form applies."""
    return _is_float_weight(tensor) and form.applies_to(tensor.shape[::-1] if transposed else tensor.shape)


def _is_float_weight(tensor: Tensor) -> bool:
    return tensor.name.endswith(WEIGHT) and tensor.dtype in FLOAT_DTYPES


def make_plan(
    tensors: Sequence[Tensor],
    spec: CompressionSpec,
    *,
    factored: Collection[str] = frozenset(),
    grams: Sequence[GramInfo] | None = None,
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
    grams
        The tensors of the calibration checkpoint, if there is one.

    Raises
    ------
    CalibrationError
        If the calibration does not fit the checkpoint.
    SpecError
        If no layer has a rank that `align` and `min_rank` allow.
    """
    names = frozenset(tensor.name for tensor in tensors)
    tensors = [tensor for tensor in tensors if not _is_factor(tensor.name, factored)]
    options = {tensor.name: _options(_module(tensor), spec) for tensor in tensors if _is_float_weight(tensor)}
    factorable = [
        tensor
        for tensor in tensors
        if (own := options.get(tensor.name)) and can_be_factored(tensor, own.form, transposed=own.transposed)
    ]
    layers = tuple(
        _plan_layer(tensor, spec, options[tensor.name], names)
        for tensor in factorable
        if _is_selected(_module(tensor), spec)
    )
    _check_ranks(layers, spec)
    warnings = tuple(_warnings(tensors, factorable, spec, layers))
    if grams is None:
        return Plan(layers, warnings)
    modules = {name.removesuffix(WEIGHT) for name in names if name.endswith(WEIGHT)} | set(factored)
    return mark_calibrated(Plan(layers, warnings), grams, modules)


def _is_factor(name: str, factored: Collection[str]) -> bool:
    found = FACTOR_NAME.fullmatch(name) if factored else None
    return found is not None and found["module"] in factored


def _module(tensor: Tensor) -> str:
    return tensor.name.removesuffix(WEIGHT)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_selected(module: str, spec: CompressionSpec) -> bool:
    return _matches(module, spec.include) and not _matches(module, spec.exclude)


def _options(name: str, spec: CompressionSpec) -> LayerOptions:
    _, override = _override(name, spec)
    options = FormOptions(override.selector or spec.selector, (override.cur or spec.cur).storage)
    form = FORMS[override.method or spec.method].of(options)
    return LayerOptions(override, form, _matches(name, spec.transposed))


def _plan_layer(
    tensor: Tensor, spec: CompressionSpec, options: LayerOptions, names: frozenset[str]
) -> LayerPlan:
    name, override = _module(tensor), options.override
    rows, columns = reversed(tensor.shape) if options.transposed else tensor.shape
    layer = LayerPlan(
        name=name,
        rows=rows,
        columns=columns,
        dtype=tensor.dtype,
        form=options.form,
        codec=codec_for(spec.dtype, tensor.dtype),
        dense_layout=spec.layout == "dense",
        rank=None,
        reason=None,
        transposed=options.transposed,
        align=override.align or spec.align,
        min_rank=override.min_rank or spec.min_rank,
        importance=override.weight or 1.0,
    )
    rank, reason = _rank(layer, override.rank or spec.rank)
    if reason is None and not layer.dense_layout and _names_taken(layer, names):
        rank, reason = None, "names_taken"
    return replace(layer, rank=rank, reason=reason)


def _rank(layer: LayerPlan, rank: int | RankRule) -> tuple[int | RankRule | None, KeptReason | None]:
    """Resolve a rank that depends on the shape alone; a ratio is rounded down, an integer up."""
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
    """Refuse an `align` or a `min_rank` that no layer can meet."""
    best = max(layers, key=lambda layer: layer.break_even_rank, default=None)
    if best is None or best.break_even_rank == 0 or any(layer.ranks for layer in layers):
        return
    field = "align" if best.align > 1 else "min_rank"
    number, override = _override(best.name, spec)
    raise SpecError(
        f"/{field}" if getattr(override, field) is None else f"/overrides/{number}/{field}",
        f"No layer can be factored. The largest break-even rank is {best.break_even_rank}, that of "
        f"{quoted(best.name)}, but its allowed ranks are multiples of {best.align} from {best.ranks.start} "
        f"on. Lower {field}, so that a rank up to {best.break_even_rank} is allowed.",
    )


def _override(name: str, spec: CompressionSpec) -> tuple[int, Override]:
    matching = ((i, o) for i, o in enumerate(spec.overrides) if fnmatchcase(name, o.match))
    return next(matching, (-1, NO_OVERRIDE))


def _names_taken(layer: LayerPlan, names: frozenset[str]) -> bool:
    """Return whether the checkpoint has a tensor with the name of a factor already."""
    new_names = {tensor.name for tensor in layer.stored_tensors(1)}
    if layer.name + BIAS in names:
        new_names.add(layer.bias_name)
    return bool(new_names & names)


def _warnings(
    tensors: Sequence[Tensor],
    factorable: Sequence[Tensor],
    spec: CompressionSpec,
    layers: Sequence[LayerPlan],
) -> Iterable[str]:
    weights = [_module(tensor) for tensor in tensors if tensor.name.endswith(WEIGHT)]
    matrices = [_module(tensor) for tensor in factorable]
    # Defaults that match nothing are no mistake of the user's.
    given_include = () if spec.include == DEFAULT_INCLUDE else spec.include
    given_exclude = () if spec.exclude == DEFAULT_EXCLUDE else spec.exclude
    for field, patterns, names in (
        ("include", given_include, matrices),
        ("exclude", given_exclude, weights),
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
    yield from _budget_warnings(spec)
    has_selector = spec.selector != CompressionSpec.model_fields["selector"].default
    if has_selector and layers and all(layer.form.selector is None for layer in layers):
        yield f"selector: it has no effect on {' and '.join(sorted({layer.form.name for layer in layers}))}"


def _budget_warnings(spec: CompressionSpec) -> Iterable[str]:
    """Warn about options that have no effect without a budget."""
    has_budget = budget_of(spec.rank) is not None
    if spec.objective != "relative" and not has_budget:
        yield "objective: it has no effect without a budget"
    for override in spec.overrides:
        if override.weight is not None and not (has_budget and override.rank is None):
            why = "together with a rank" if has_budget else "without a budget"
            yield f"overrides: the weight of {override.match!r} has no effect {why}"
