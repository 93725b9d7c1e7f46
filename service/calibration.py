"""The checkpoint that a spec names for its Gram matrices: found, whole, and held against the layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from schemas.format.tensor import TensorInfo
from schemas.planning.calibration import CalibrationError
from schemas.problem import FieldProblem
from schemas.report import FileReport
from schemas.spec import CompressionSpec
from service import errors
from service.deps import Services
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
    def files(self) -> tuple[FileReport, ...]:
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
