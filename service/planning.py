"""Plans for stored checkpoints: bounded in work, checked, and exact where the spectra are known."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from schemas.checkpoint import FileInfo
from schemas.format.files import CheckpointFiles
from schemas.format.metadata import factored_names
from schemas.format.tensor import TensorInfo
from schemas.planning.budget import check_budget, resolve_ranks
from schemas.planning.calibration import GRAM, CalibrationError
from schemas.planning.layer import Plan
from schemas.planning.planner import make_plan
from schemas.problem import FieldProblem, SpecError
from schemas.spec import CompressionSpec, RankRule
from service import errors
from service.dependencies import Services
from state.cache import DecompositionKey
from state.checkpoints import StoredCheckpoint
from state.errors import CheckpointNotFound

# Where the field stands: in the JSON request of a job or plan, and in the spec of a form.
IN_REQUEST = "/spec/calibration"
IN_FORM = "/calibration"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A stored calibration, and where the client has named it."""

    stored: StoredCheckpoint
    pointer: str

    @property
    def files(self) -> tuple[FileInfo, ...]:
        """Its files with their digests."""
        return self.stored.files

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """What it holds."""
        return self.stored.tensors

    @contextmanager
    def pointed(self) -> Iterator[None]:
        """Say of what does not fit where it was asked for."""
        try:
            yield
        except CalibrationError as error:
            raise errors.InvalidCalibration(error.code, error.detail, pointer=self.pointer) from error


def find_calibration(services: Services, spec: CompressionSpec, *, pointer: str) -> Calibration | None:
    """Find what the spec names; None where it names none."""
    name = spec.calibration
    if name is None:
        return None
    try:
        stored = services.checkpoints.get(name)
    except CheckpointNotFound as error:
        detail = (
            f"No checkpoint has the id {name} that `calibration` names; "
            f"upload the Gram matrices with PUT /v1/checkpoints/{name}/grams.safetensors."
        )
        raise errors.CheckpointNotFound(
            detail, errors=(FieldProblem(pointer=pointer, detail=detail),)
        ) from error
    if not stored.complete:
        detail = f"The calibration {name} lacks files: {', '.join(stored.missing)}. Upload them first."
        raise errors.CheckpointIncomplete(detail, errors=(FieldProblem(pointer=pointer, detail=detail),))
    return Calibration(stored, pointer)


# A match takes half a microsecond, or ten for a pattern made to be slow.
MAX_MATCHES = 10_000_000
# Where the spec stands in the JSON request of a job or plan, and in a form.
SPEC_IN_REQUEST = "/spec"
SPEC_IN_FORM = ""


def bounded_plan(
    files: CheckpointFiles, spec: CompressionSpec, calibration: Calibration | None, *, place: str
) -> Plan:
    """Plan, unless matching every pattern with every tensor would keep this process busy for long."""
    tensors = files.tensors
    patterns = sum(map(len, (spec.include, spec.exclude, spec.overrides, spec.transposed)))
    if patterns * len(tensors) > MAX_MATCHES:
        raise errors.InvalidSpec(
            f"{patterns} patterns for {len(tensors)} tensors are too many; let each stand for many layers."
        )
    factored = factored_names(header.metadata for header in files.headers.values())
    with _placed(place):
        if calibration is None:
            plan = make_plan(tensors, spec, factored=factored)
        else:
            with calibration.pointed():
                plan = make_plan(tensors, spec, factored=factored, grams=calibration.tensors)
        check_budget(plan, spec, files)
    return plan


def resolved_plan(
    services: Services, stored: StoredCheckpoint, spec: CompressionSpec, calibration: Calibration | None
) -> Plan:
    """Plan with whatever the decompositions of earlier jobs settle."""
    files = CheckpointFiles(stored.headers, stored.index)
    plan = bounded_plan(files, spec, calibration, place=SPEC_IN_REQUEST)
    spectra = services.decompositions.spectra(_keys(stored, plan, calibration))
    with _placed(SPEC_IN_REQUEST):
        return resolve_ranks(plan, spec, files, spectra)


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Say of what a spec asks in vain where it was asked for."""
    try:
        yield
    except SpecError as error:
        where = FieldProblem(pointer=place + error.pointer, detail=error.detail)
        raise errors.InvalidSpec(error.detail, errors=(where,)) from error


def _keys(stored: StoredCheckpoint, plan: Plan, calibration: Calibration | None) -> list[DecompositionKey]:
    """Name the decompositions of the layers whose ranks hang on them."""
    waiting = {layer.tensor: layer for layer in plan.layers if isinstance(layer.rank, RankRule)}
    digests = {file.name: file.sha256 for file in stored.files}
    grams = _gram_digests(calibration.stored) if calibration else {}
    return [
        DecompositionKey(
            digests[name],
            tensor.name,
            tensor.dtype,
            tensor.shape,
            waiting[tensor.name].transposed,
            grams.get(waiting[tensor.name].name),
        )
        for name, header in stored.headers.items()
        for tensor in header.tensors
        if tensor.name in waiting
    ]


def _gram_digests(calibration: StoredCheckpoint) -> dict[str, str]:
    """Return the digest of the file that holds a layer's Gram matrix, by the layer's name."""
    digests = {file.name: file.sha256 for file in calibration.files}
    return {
        tensor.name.removesuffix(GRAM): digests[name]
        for name, header in calibration.headers.items()
        for tensor in header.tensors
        if tensor.name.endswith(GRAM)
    }
