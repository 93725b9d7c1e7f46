"""The checkpoints that a spec names besides the one to compress, and the errors if one does not fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from schemas.format.encodings import PlannedTensors
from schemas.format.encodings.lora import find_lora_pairs
from schemas.format.errors import CheckpointError
from schemas.format.files import CheckpointFiles, open_checkpoint
from schemas.format.stacks import Orientation
from schemas.format.tensor import WEIGHT, TensorInfo
from schemas.planning.patterns import Patterns
from schemas.problem import ProblemKind
from schemas.spec import CompressionSpec

T = TypeVar("T")


class MisfitError(CheckpointError):
    """A checkpoint that the spec names cannot be used; `detail` says why and what to do.

    `field` is the field of the spec that names it, and `kind` is the problem to answer with.
    """

    field: ClassVar[str]
    kind: ClassVar[ProblemKind]


class CalibrationError(MisfitError):
    """A calibration checkpoint cannot be used; `detail` names the layer and what to do."""

    field = "calibration"
    kind = ProblemKind.INVALID_CALIBRATION


class BaseError(MisfitError):
    """The base of a difference cannot be used; `detail` names the tensors and what to do."""

    field = "base"
    kind = ProblemKind.INVALID_BASE


MISFITS: dict[str, type[MisfitError]] = {error.field: error for error in (CalibrationError, BaseError)}


@dataclass(frozen=True, slots=True)
class References(Generic[T]):
    """One thing for each checkpoint that a spec may name, such as its files; None where it names none."""

    calibration: T | None = None
    base: T | None = None

    def given(self) -> Iterator[tuple[str, T]]:
        """Yield the field of the spec and the thing, for each that is given."""
        for field in MISFITS:
            found: T | None = getattr(self, field)
            if found is not None:
                yield field, found


NO_REFERENCES: References[Any] = References()


def asked_orientation(spec: CompressionSpec) -> Orientation | None:
    """Return how a spec says that stacks of experts are oriented; None where it says nothing."""
    if not spec.experts:
        return None
    patterns = Patterns([stack.match for stack in spec.experts])

    def orientation(tensor: TensorInfo) -> bool | None:
        number = patterns.find(tensor.name.removesuffix(WEIGHT))
        return None if number is None else spec.experts[number].transposed

    return orientation


def planned_tensors(files: CheckpointFiles, spec: CompressionSpec, base: object | None) -> PlannedTensors:
    """Return a checkpoint's tensors as planning sees them; where a difference is factored, as they are.

    Of an adapter that gets lower ranks, each pair is the weight that its product is.
    """
    if base is not None:
        return PlannedTensors(files.tensors)
    if spec.layout == "adapter":
        return find_lora_pairs(files.tensors)
    # A product has no place beside experts that stay quantized.
    return files.planned(asked_orientation(spec), packed_stacks=spec.layout != "dense")


def tensors_of(files: CheckpointFiles | None) -> Sequence[TensorInfo] | None:
    """Return the tensors of a checkpoint if it is given."""
    return None if files is None else files.tensors


def open_references(paths: References[Path]) -> References[CheckpointFiles]:
    """Open each without its companions; a malformed one is the `MisfitError` of its field."""
    return References(**{field: _open(field, path) for field, path in paths.given()})


def _open(field: str, path: Path) -> CheckpointFiles:
    try:
        return replace(open_checkpoint(path), companions=())
    except CheckpointError as error:
        raise MISFITS[field](error.fault, error.detail, error.pointer) from error
