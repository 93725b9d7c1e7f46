"""Plans within HTTP's bounds: limited in work, with errors that point into the request.

Each function takes `pointer`, the JSON pointer to the spec in the request: SPEC_IN_JSON or SPEC_IN_MULTIPART.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from schemas.format.errors import listed, quoted
from schemas.format.files import CheckpointFiles
from schemas.format.tensor import DTYPE_BITS
from schemas.planning.budget import check_budget, resolve_ranks
from schemas.planning.calibration import Calibration
from schemas.planning.layer import LayerPlan, Tensor
from schemas.planning.layers import Plan
from schemas.planning.output_header import check_output_headers, check_output_index
from schemas.planning.patterns import matching_ns
from schemas.planning.planner import make_plan
from schemas.planning.references import MisfitError, References, planned_tensors, tensors_of
from schemas.planning.selection import is_float_weight
from schemas.problem import FieldProblem, ProblemKind, SpecError
from schemas.rank_rule import RankRule
from schemas.spec import DEFAULT_EXCLUDE, DEFAULT_INCLUDE, CompressionSpec
from service.dependencies import Services
from service.errors import ProblemError
from state.cache.key import DecompositionKey
from state.checkpoints.store import StoredCheckpoint
from state.errors import CheckpointNotFound

SPEC_IN_JSON = "/spec"
SPEC_IN_MULTIPART = ""
MAX_PATTERNS = 1_000
# To compile a pattern takes 10 us for each character.
MAX_PATTERN_CHARACTERS = 2**16
MAX_MATCHING_NS = 1_000_000_000
# A planned layer takes 2 kB and 0.1 ms. The largest known checkpoint has 69,000.
MAX_LAYERS = 100_000
# All is computed in float32 at least, and needs the weight itself and a workspace of its size.
COMPUTED_BYTES = 4
COPIES = 2

SAME_BASE = (
    "The base has the same weights as the checkpoint, so there is no difference to compress. Name the model "
    "that this one was fine-tuned from."
)

# By the field that names a stored checkpoint: what it holds, and a name for its file.
CONTENTS = {"calibration": ("the Gram matrices", "grams"), "base": ("the base", "model")}


def find_references(
    services: Services, spec: CompressionSpec, *, pointer: str
) -> References[StoredCheckpoint]:
    """Return the stored checkpoints that the spec names; each must exist and be complete."""
    return References(
        **{
            field: _find_reference(services, name, field, pointer=f"{pointer}/{field}")
            for field, name in spec.references.items()
        }
    )


def _find_reference(services: Services, name: str, field: str, *, pointer: str) -> StoredCheckpoint:
    try:
        stored = services.checkpoints.get(name)
    except CheckpointNotFound as error:
        what, file = CONTENTS[field]
        hint = f"Upload {what} with PUT /v1/checkpoints/{name}/{file}.safetensors."
        named = (FieldProblem(pointer=pointer, detail=hint),)
        raise ProblemError(ProblemKind.CHECKPOINT_NOT_FOUND, errors=named) from error
    require_complete(stored, pointer=pointer)
    return stored


def require_difference(
    stored: StoredCheckpoint, references: References[StoredCheckpoint], *, pointer: str
) -> None:
    """Refuse a base of the same weights as the checkpoint, under whatever id: nothing would be left."""
    base = references.base
    if base is not None and _weights(base) == _weights(stored):
        named = f"{pointer}/base"
        raise ProblemError(ProblemKind.INVALID_BASE, SAME_BASE, fault="no-difference", pointer=named)


def _weights(stored: StoredCheckpoint) -> set[str]:
    """Return the digests of the weight files."""
    return {file.sha256 for file in stored.files if file.name in stored.headers}


def require_complete(stored: StoredCheckpoint, *, pointer: str | None = None) -> None:
    """Refuse a stored checkpoint that lacks files; `pointer` is the field of the request that names it."""
    if not stored.complete:
        missing = (
            f"the index of {join_names(stored.unrelated)}" if stored.unrelated else ", ".join(stored.missing)
        )
        raise ProblemError(ProblemKind.CHECKPOINT_INCOMPLETE, values={"missing": missing}, pointer=pointer)


def join_names(names: tuple[str, ...]) -> str:
    """Join names for a sentence; long lists are shortened."""
    return " and ".join(names) if len(names) == 2 else listed(names)


def make_bounded_plan(
    files: CheckpointFiles, spec: CompressionSpec, references: References[StoredCheckpoint], *, pointer: str
) -> Plan:
    """Plan, unless matching every pattern with every tensor would keep this process busy for long."""
    base = tensors_of(references.base)
    planned = planned_tensors(files, spec, base)
    tensors = planned.tensors
    _check_layers(tensors)
    _check_patterns(spec, tensors, pointer)
    with _spec_errors(pointer):
        calibration = None if references.calibration is None else Calibration.of(references.calibration)
        plan = make_plan(
            tensors,
            spec,
            factored=files.factored,
            aliases=files.aliases,
            content_hashes=files.content_hashes,
            calibration=calibration,
            base=base,
            unknown=planned.unknown,
        )
        check_budget(plan, spec, files)
        check_output_headers(plan, files)
        check_output_index(plan, files)
    return replace(plan, warnings=(*files.warnings, *plan.warnings))


def _check_layers(tensors: Sequence[Tensor]) -> None:
    """Refuse a checkpoint with more weights than can be planned, whichever of them the spec selects."""
    weights = sum(len(tensor.shape) > 1 and is_float_weight(tensor) for tensor in tensors)
    if weights > MAX_LAYERS:
        raise ProblemError(
            ProblemKind.INVALID_CHECKPOINT,
            f"The checkpoint has {weights} weights of floats with several sides, and at most {MAX_LAYERS} "
            "can be planned. Store it as several checkpoints.",
            fault="too-many-layers",
        )


def _check_patterns(spec: CompressionSpec, tensors: Sequence[Tensor], pointer: str) -> None:
    """Refuse patterns that would keep this process busy for long."""
    # The defaults are matched with the few different last parts of names.
    given = () if spec.exclude == DEFAULT_EXCLUDE else spec.exclude
    pairs = () if spec.pairs is None or spec.pairs == "neurons" else spec.pairs
    fields: dict[str, list[str]] = {
        "include": [] if spec.include == DEFAULT_INCLUDE else [*spec.include],
        "exclude": [*given],
        "overrides": [override.match for override in spec.overrides],
        "transposed": [*spec.transposed],
        "experts": [stack.match for stack in spec.experts],
        "pairs": [name for pair in pairs for name in (pair.up, pair.gate, pair.down) if name],
    }
    most = max(fields, key=lambda field: sum(map(len, fields[field])))
    patterns = [pattern for each in fields.values() for pattern in each]
    characters = sum(map(len, patterns))
    fault = None
    if len(patterns) > MAX_PATTERNS:
        fault = f"{len(patterns)} patterns are too many: at most {MAX_PATTERNS} are allowed"
    elif characters > MAX_PATTERN_CHARACTERS:
        fault = f"The patterns have {characters} characters: at most {MAX_PATTERN_CHARACTERS} are allowed"
    elif (needed := matching_ns(patterns, (tensor.name for tensor in tensors))) > MAX_MATCHING_NS:
        fault = (
            f"The patterns with wildcards are too many for {len(tensors)} tensors: to match them may take "
            f"{needed / 1e9:.1f} s, and at most {MAX_MATCHING_NS / 1e9:.1f} s are allowed"
        )
    if fault is not None:
        raise ProblemError(
            ProblemKind.INVALID_SPEC,
            f"{fault}. Use fewer patterns that match more layers each, or whole names.",
            pointer=f"{pointer}/{most}",
        )


def check_memory(services: Services, plan: Plan) -> None:
    """Refuse a plan with a layer that no worker which is up has the memory for."""
    factored = [layer for layer in plan.layers if layer.reason is None]
    memory_bytes = services.workers.largest_memory_bytes()
    if memory_bytes is None or not factored:
        return
    largest = max(factored, key=least_memory_bytes)
    if (needed := least_memory_bytes(largest)) > memory_bytes:
        values = {"layer": quoted(largest.name), "needed_bytes": needed, "memory_bytes": memory_bytes}
        raise ProblemError(ProblemKind.OUT_OF_MEMORY, values=values)


def make_resolved_plan(
    services: Services,
    stored: StoredCheckpoint,
    spec: CompressionSpec,
    references: References[StoredCheckpoint],
    *,
    pointer: str,
) -> Plan:
    """Plan, and resolve the ranks that depend on spectra which earlier jobs have left in the cache."""
    plan = make_bounded_plan(stored, spec, references, pointer=pointer)
    spectra = services.decompositions.spectra(_keys(stored, plan, references))
    with _spec_errors(pointer):
        return resolve_ranks(plan, spec, stored, spectra)


@contextmanager
def _spec_errors(pointer: str) -> Iterator[None]:
    """Turn errors of the planner into problems that point into the request."""
    try:
        yield
    except SpecError as error:
        raise ProblemError(ProblemKind.INVALID_SPEC, error.detail, pointer=pointer + error.pointer) from error
    except MisfitError as error:
        named = f"{pointer}/{error.field}"
        raise ProblemError(error.kind, error.detail, fault=error.fault, pointer=named) from error


def _keys(
    stored: StoredCheckpoint, plan: Plan, references: References[StoredCheckpoint]
) -> list[DecompositionKey]:
    """Return the cache keys of the layers whose ranks depend on their spectra."""
    waiting = {layer.replaced[0]: layer for layer in plan.layers if isinstance(layer.rank, RankRule)}
    digests = _digests(stored)
    own = _tensor_digests(stored) if any(layer.encoded for layer in waiting.values()) else {}
    statistics = _statistics_digests(references.calibration) if references.calibration else {}
    bases = _tensor_digests(references.base) if references.base else {}
    return [
        DecompositionKey.of(
            digests[name],
            tensor,
            waiting[tensor.name],
            statistics_sha256=statistics.get(waiting[tensor.name].name, ()),
            base_sha256=bases.get(tensor.name),
            parts_sha256=[own[part] for part in waiting[tensor.name].replaced[1:]],
        )
        for name, header in stored.headers.items()
        for tensor in header.tensors
        if tensor.name in waiting
    ]


def _statistics_digests(stored: StoredCheckpoint) -> dict[str, Collection[str]]:
    """Return the digests of the files that hold a layer's statistics, by the layer's name."""
    digests = _digests(stored)
    return {
        layer: {digests[source.file]: None for _, source in own.given()}
        for layer, own in Calibration.of(stored).layers.items()
    }


def _tensor_digests(stored: StoredCheckpoint) -> dict[str, str]:
    """Return the digest of the file that holds a tensor, by the tensor's name."""
    digests = _digests(stored)
    return {
        tensor.name: digests[name] for name, header in stored.headers.items() for tensor in header.tensors
    }


def _digests(stored: StoredCheckpoint) -> dict[str, str]:
    return {file.name: file.sha256 for file in stored.files}


def least_memory_bytes(layer: LayerPlan) -> int:
    """Return what no solver needs less than: the stored weight, a copy to compute with, and a workspace."""
    bytes_each = max(COMPUTED_BYTES, DTYPE_BITS[layer.dtype] // 8)
    return layer.bytes_before + COPIES * layer.rows * layer.columns * bytes_each
