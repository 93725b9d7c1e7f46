"""Warnings about probable mistakes in a spec, once its layers are chosen."""

from collections.abc import Iterable, Iterator, Sequence

from schemas.format.errors import listed
from schemas.format.stacks import ExpertMatrix
from schemas.format.tensor import WEIGHT
from schemas.planning.choice import Choice, module_of
from schemas.planning.kernels import kernel_warnings
from schemas.planning.layer import LayerPlan, Tensor
from schemas.planning.override_warnings import override_warnings
from schemas.planning.patterns import Patterns
from schemas.planning.selection import LayerOptions
from schemas.rank_rule import budget_of
from schemas.spec import DEFAULT_EXCLUDE, DEFAULT_GROUP, DEFAULT_INCLUDE, CompressionSpec


def choice_warnings(tensors: Iterable[Tensor], spec: CompressionSpec, choice: Choice) -> Iterator[str]:
    """Yield them; `tensors` are those that were chosen from."""
    layers, alone = choice.layers, choice.alone()
    idle_overrides: list[int] = []
    for field, patterns, names in _patterns(tensors, spec, choice):
        if not patterns:
            continue
        idle = Patterns(patterns).idle(names)
        if field == "overrides":
            idle_overrides = idle
        for number in idle:
            yield f"{field}: the pattern {patterns[number]!r} matches no layer"
    inferred = [name for (name, _), own in zip(layers.named(), choice.options, strict=True) if own.inferred]
    if inferred:
        yield f"transposed: taken as stored [inputs, outputs], since biases say so: {listed(inferred)}"
    if layers and all(layer.reason for layer in layers.kinds):
        yield "every selected layer stays dense: the output equals the input"
    yield from _budget_warnings(spec)
    yield from override_warnings(spec, alone, idle=set(idle_overrides))
    yield from _rank_warnings(spec, alone)
    yield from kernel_warnings(spec, layers)
    has_selector = spec.selector != CompressionSpec.model_fields["selector"].default
    if has_selector and layers and all(layer.form.selector is None for layer in layers.kinds):
        yield f"selector: it has no effect on {_joined_methods(layers.kinds)}"


def _patterns(
    tensors: Iterable[Tensor], spec: CompressionSpec, choice: Choice
) -> Iterator[tuple[str, Sequence[str], Iterable[str]]]:
    """Yield the patterns of each field, and the names of which each should match one."""
    layers, matrices = choice.layers, choice.matrices or ()
    # Defaults that match nothing are no mistake of the user's.
    yield "include", () if spec.include == DEFAULT_INCLUDE else spec.include, matrices
    given = tuple(pattern for pattern in spec.exclude if pattern not in DEFAULT_EXCLUDE)
    yield "exclude", given, (module_of(tensor) for tensor in tensors if tensor.name.endswith(WEIGHT))
    alone = (layer.name for layer in layers if layer.pair is None)
    yield "overrides", tuple(override.match for override in spec.overrides), alone
    yield "transposed", spec.transposed, matrices
    stacks = (tensor.stack.removesuffix(WEIGHT) for tensor in tensors if isinstance(tensor, ExpertMatrix))
    yield "experts", tuple(stack.match for stack in spec.experts), stacks


def _rank_warnings(spec: CompressionSpec, alone: Sequence[tuple[LayerPlan, LayerOptions]]) -> Iterator[str]:
    """Warn of a rank that all layers leave aside that it is for, since their forms have none."""
    layers = [layer for layer, _ in alone]
    ruled = [layer for layer, own in alone if own.override.rank is None]
    # With pairs, a rank is the share of their neurons.
    is_given = spec.rank is not None and budget_of(spec.rank) is None and spec.pairs is None
    if is_given and ruled and not any(layer.form.has_ranks for layer in ruled):
        yield f"rank: it has no effect on {_joined_methods(ruled)}"
    quantizers = [each.form.quantizer for layer in layers for each in layer.variants]
    if spec.group != DEFAULT_GROUP and layers and not any(each and each.group for each in quantizers):
        yield f"group: it has no effect on {_joined_methods(layers)}"


def _joined_methods(layers: Iterable[LayerPlan]) -> str:
    return " and ".join(sorted({method for layer in layers for method in layer.methods}))


def _budget_warnings(spec: CompressionSpec) -> Iterator[str]:
    """Warn about options that have no effect without a budget."""
    has_budget = budget_of(spec.rank) is not None
    if spec.objective is not None and not has_budget:
        yield "objective: it has no effect without a budget"
    for override in spec.overrides:
        if override.weight is not None and not (has_budget and override.rank is None):
            why = "together with a rank" if has_budget else "without a budget"
            yield f"overrides: the weight of {override.match!r} has no effect {why}"
