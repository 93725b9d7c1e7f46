"""Make the plan of a checkpoint from its headers and a spec; no weight is read."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from schemas.format.encodings import EncodedWeight
from schemas.format.errors import quoted
from schemas.format.stacks import ExpertMatrix
from schemas.format.tensor import BIAS, FLOAT_DTYPES, WEIGHT
from schemas.planning.adapter import check_adapter
from schemas.planning.calibration import Calibration, mark_calibrated
from schemas.planning.choice import Choice, is_factor, module_of
from schemas.planning.choice_warnings import choice_warnings
from schemas.planning.difference import check_base, check_layout
from schemas.planning.distortion import objective_warnings
from schemas.planning.layer import Tensor
from schemas.planning.layer_planner import LayerPlanner
from schemas.planning.layers import Layers, Plan
from schemas.planning.left_out import left_out_warnings
from schemas.planning.modules import Modules
from schemas.planning.pairs import PairFinder, check_neuron_grams
from schemas.planning.resizing import NO_LORA_PAIR, is_lora, resize_spec
from schemas.planning.selection import LayerOptions, Selection, can_be_factored, is_float_weight
from schemas.problem import SpecError
from schemas.spec import CompressionSpec

CONTENT_HASHES_LEFT_OUT = "metadata: left out, since they are digests of the input: "
# The rule by which tensors are left out that seem to be quantized, of which nothing tells how.
ENCODING = "encoding"
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
    unknown: Collection[str] = frozenset(),
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
    unknown
        The tensors that seem to hold quantized values, of which nothing tells how.

    Raises
    ------
    MisfitError
        If the calibration or the base does not fit the checkpoint.
    SpecError
        If no layer has a rank that `align` and `min_rank` allow, or the layout does not fit the job.
    """
    check_layout(spec, has_base=base is not None)
    resizes = spec.layout == "adapter" and base is None
    if resizes:
        spec = resize_spec(spec, tensors)
    base_warnings = () if base is None else check_base(tensors, base)
    modules = Modules(tensors, aliases)
    selection = Selection(spec, modules)
    left = _without_factors(tensors, factored)
    pairs = PairFinder(spec, _plain(left), modules, lambda module: selection.options(module).transposed)
    members, pair_warnings = pairs.find()
    choice = Choice(spec, selection, modules, members, difference=base is not None)
    for tensor in tensors:
        if is_factor(tensor.name, factored):
            choice.left_out.add("factored_before", tensor)
        elif tensor.name in unknown:
            choice.left_out.add(ENCODING, tensor)
        elif resizes and not is_lora(tensor):
            choice.left_out.add(NO_LORA_PAIR, tensor)
        else:
            choice.take(tensor)
    plan = Plan(choice.layers, (), choice.left_out.by_rule, adapter=spec.layout == "adapter" and not resizes)
    if plan.adapter:
        check_adapter(plan.layers, [_form_pointer(own) for own in choice.options])
    else:
        _check_ranks(choice)
    warnings = [*choice_warnings(left, spec, choice), *left_out_warnings(plan)]
    if content_hashes and any(layer.reason is None for layer in choice.layers.kinds):
        warnings.append(CONTENT_HASHES_LEFT_OUT + ", ".join(content_hashes))
    plan = replace(plan, warnings=(*warnings, *pair_warnings, *base_warnings))
    if calibration is not None:
        biases = {} if spec.bias == "keep" else _correctable_biases(tensors, aliases)
        with_weight = {module_of(tensor) for tensor in tensors if tensor.name.endswith(WEIGHT)}
        plan = mark_calibrated(plan, calibration, with_weight | set(factored), biases)
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
    selection, layers = Selection(spec, modules), Layers()
    planner = LayerPlanner(spec, modules, layers, difference=False)

    def is_factored(tensor: Tensor) -> bool:
        if not is_float_weight(tensor) or is_factor(tensor.name, factored):
            return False
        own = selection.options(module_of(tensor))
        if not can_be_factored(tensor, own.forms, transposed=own.transposed):
            return False
        if selection.pattern_rule(module_of(tensor)) is not None:
            return False
        return layers.kind(planner.kind(tensor, own)).reason is None

    return frozenset(tensor.name for tensor in asked if is_factored(tensor))


def _correctable_biases(tensors: Iterable[Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the biases that belong to one module alone, by name."""
    shared = frozenset(aliases.values())
    return {
        tensor.name: tensor
        for tensor in tensors
        if tensor.name.endswith(BIAS) and tensor.dtype in FLOAT_DTYPES and tensor.name not in shared
    }


def _without_factors(tensors: Sequence[Tensor], factored: Collection[str]) -> Sequence[Tensor]:
    if not factored:
        return tensors
    return [tensor for tensor in tensors if not is_factor(tensor.name, factored)]


def _plain(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the tensors without weights that are quantized or in a stack, from which no rows can be cut."""
    if not any(isinstance(tensor, EncodedWeight | ExpertMatrix) for tensor in tensors):
        return tensors
    return [tensor for tensor in tensors if not isinstance(tensor, EncodedWeight | ExpertMatrix)]


def _check_ranks(choice: Choice) -> None:
    """Refuse an `align` or a `min_rank` that no layer can meet."""
    if any(layer.pair is None and layer.ranks for layer in choice.layers.kinds):
        return
    ranks = (layer.break_even_rank for layer in choice.layers.kinds if layer.pair is None)
    if not (largest := max(ranks, default=0)):
        return
    best, own = next(
        (layer, own)
        for layer, own in zip(choice.layers, choice.options, strict=True)
        if layer.pair is None and layer.break_even_rank == largest
    )
    field = "align" if best.align > 1 else "min_rank"
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
