"""Plans within HTTP's bounds: limited in work, with errors that point into the request.

Each function takes `pointer`, the JSON pointer to the spec in the request: SPEC_IN_JSON or SPEC_IN_MULTIPART.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from schemas.format.errors import listed
from schemas.format.files import CheckpointFiles
from schemas.planning.budget import check_budget, resolve_ranks
from schemas.planning.calibration import CalibrationError, gram_tensors
from schemas.planning.layer import Plan
from schemas.planning.planner import make_plan
from schemas.problem import FieldProblem, ProblemKind, SpecError
from schemas.spec import DEFAULT_EXCLUDE, CompressionSpec, RankRule
from service.dependencies import Services
from service.errors import ProblemError
from state.cache import DecompositionKey
from state.checkpoints import StoredCheckpoint
from state.errors import CheckpointNotFound

SPEC_IN_JSON = "/spec"
SPEC_IN_MULTIPART = ""
# Matching one pattern with one tensor takes 0.5 us, or 10 us for a pattern made to be slow.
MAX_MATCHES = 10_000_000


def find_calibration(services: Services, spec: CompressionSpec, *, pointer: str) -> StoredCheckpoint | None:
    """Return the stored checkpoint that `spec.calibration` names; it must exist and be complete."""
    name, field = spec.calibration, f"{pointer}/calibration"
    if name is None:
        return None
    try:
        stored = services.checkpoints.get(name)
    except CheckpointNotFound as error:
        hint = f"Upload the Gram matrices with PUT /v1/checkpoints/{name}/grams.safetensors."
        named = (FieldProblem(pointer=field, detail=hint),)
        raise ProblemError(ProblemKind.CHECKPOINT_NOT_FOUND, errors=named) from error
    require_complete(stored, pointer=field)
    return stored


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
    files: CheckpointFiles, spec: CompressionSpec, calibration: StoredCheckpoint | None, *, pointer: str
) -> Plan:
    """Plan, unless matching every pattern with every tensor would keep this process busy for long."""
    tensors = files.tensors
    # The defaults are matched with the few different last parts of names.
    given = () if spec.exclude == DEFAULT_EXCLUDE else spec.exclude
    patterns = sum(map(len, (spec.include, given, spec.overrides, spec.transposed)))
    if patterns * len(tensors) > MAX_MATCHES:
        raise ProblemError(
            ProblemKind.INVALID_SPEC,
            f"{patterns} patterns for {len(tensors)} tensors are too many; "
            "use fewer patterns that match more layers each.",
        )
    grams = calibration.tensors if calibration else None
    with _spec_errors(pointer):
        plan = make_plan(
            tensors,
            spec,
            factored=files.factored,
            aliases=files.aliases,
            content_hashes=files.content_hashes,
            grams=grams,
        )
        check_budget(plan, spec, files)
    return replace(plan, warnings=(*files.warnings, *plan.warnings))


def make_resolved_plan(
    services: Services,
    stored: StoredCheckpoint,
    spec: CompressionSpec,
    calibration: StoredCheckpoint | None,
    *,
    pointer: str,
) -> Plan:
    """Plan, and resolve the ranks that depend on spectra which earlier jobs have left in the cache."""
    plan = make_bounded_plan(stored, spec, calibration, pointer=pointer)
    spectra = services.decompositions.spectra(_keys(stored, plan, calibration))
    with _spec_errors(pointer):
        return resolve_ranks(plan, spec, stored, spectra)


@contextmanager
def _spec_errors(pointer: str) -> Iterator[None]:
    """Turn errors of the planner into problems that point into the request."""
    try:
        yield
    except SpecError as error:
        raise ProblemError(ProblemKind.INVALID_SPEC, error.detail, pointer=pointer + error.pointer) from error
    except CalibrationError as error:
        raise ProblemError(
            ProblemKind.INVALID_CALIBRATION, error.detail, fault=error.fault, pointer=f"{pointer}/calibration"
        ) from error


def _keys(
    stored: StoredCheckpoint, plan: Plan, calibration: StoredCheckpoint | None
) -> list[DecompositionKey]:
    """Return the cache keys of the layers whose ranks depend on their spectra."""
    waiting = {layer.tensor: layer for layer in plan.layers if isinstance(layer.rank, RankRule)}
    digests = {file.name: file.sha256 for file in stored.files}
    grams = _gram_digests(calibration) if calibration else {}
    return [
        DecompositionKey.of(
            digests[name],
            tensor,
            transposed=waiting[tensor.name].transposed,
            calibration_sha256=grams.get(waiting[tensor.name].name),
        )
        for name, header in stored.headers.items()
        for tensor in header.tensors
        if tensor.name in waiting
    ]


def _gram_digests(calibration: StoredCheckpoint) -> dict[str, str]:
    """Return the digest of the file that holds a layer's Gram matrix, by the layer's name."""
    digests = {file.name: file.sha256 for file in calibration.files}
    return {layer: digests[name] for layer, (name, _) in gram_tensors(calibration).items()}
