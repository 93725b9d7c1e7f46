"""Deciding what is done to each weight: tensors and spec in, a frozen plan out, nothing read or computed."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from schemas.calibration import GramInfo, calibrated
from schemas.compression import DEFAULT_EXCLUDE, DEFAULT_INCLUDE, CompressionSpec, Override, RankRule
from schemas.plan import BIAS, STORED, WEIGHT, LayerPlan, Plan, Tensor
from schemas.ranks import break_even_rank, ratio_rank
from schemas.report import KeptReason
from schemas.tensor import FLOAT_DTYPES


def is_candidate(tensor: Tensor) -> bool:
    """Say whether a tensor could be factored at all: a floating matrix named `*.weight`."""
    return tensor.name.endswith(WEIGHT) and len(tensor.shape) == 2 and tensor.dtype in FLOAT_DTYPES


NO_OVERRIDE = Override(match="*")
FACTOR = re.compile(r"(?P<module>.*)\.[0-2]\.weight")


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
    """
    taken = frozenset(tensor.name for tensor in tensors)
    tensors = [tensor for tensor in tensors if not _is_factor(tensor.name, factored)]
    layers = tuple(
        _plan_layer(tensor, spec, taken)
        for tensor in tensors
        if is_candidate(tensor) and _selected(_module(tensor), spec)
    )
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
    rule = next((o for o in spec.overrides if fnmatchcase(name, o.match)), NO_OVERRIDE)
    method = rule.method or spec.method
    storage = (rule.cur or spec.cur).storage
    factors = 3 if method == "cur" and storage == "three" else 2
    transposed = _matches(name, spec.transposed)
    rows, columns = reversed(tensor.shape) if transposed else tensor.shape
    rank, reason = _rank(rows, columns, rule.rank or spec.rank, factors)
    layer = LayerPlan(
        name=name,
        rows=rows,
        columns=columns,
        dtype=tensor.dtype,
        stored_dtype=STORED.get(spec.dtype, tensor.dtype),
        method=method,
        selector=rule.selector or spec.selector,
        factors=factors,
        dense_layout=spec.layout == "dense",
        rank=rank,
        reason=reason,
        transposed=transposed,
    )
    if reason is None and not layer.dense_layout and _names_taken(layer, taken):
        return replace(layer, rank=None, reason="names_taken")
    return layer


def _rank(
    rows: int, columns: int, rank: int | RankRule, factors: int
) -> tuple[int | RankRule | None, KeptReason | None]:
    most = break_even_rank(rows, columns, factors=factors)
    if isinstance(rank, RankRule) and rank.ratio is not None:
        rank = ratio_rank(rows, columns, rank.ratio, factors=factors)
        if rank == 0:
            return None, "rank_zero" if most else "no_saving"
    if most == 0 or (isinstance(rank, int) and rank > most):
        return None, "no_saving"
    return rank, None


def _names_taken(layer: LayerPlan, taken: frozenset[str]) -> bool:
    names = set(layer.factor_names())
    if layer.name + BIAS in taken:
        names.add(layer.bias_name())
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
