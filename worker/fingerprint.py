"""What finished layers depend on, as one digest: those of other work are never taken."""

import hashlib
from collections.abc import Iterable, Iterator

from schemas.checkpoint import FileInfo
from schemas.planning.references import References
from schemas.spec import CompressionSpec
from worker.layer_cache import NUMERICS
from worker.work_plan import WorkPlan


def work_fingerprint(
    work: WorkPlan,
    spec: CompressionSpec,
    files: Iterable[FileInfo],
    reference_files: References[tuple[FileInfo, ...]],
) -> str:
    """Return a name for all that was planned for these bytes, under this release's numerics.

    Another release may select other layers, and then a layer's number is that of another. Companions do not
    count, since no layer depends on them but through the plan.
    """
    digest = hashlib.sha256()
    weights = tuple(file for file in files if file.name not in work.checkpoint.companions)
    for line in _lines(work, spec, [("input", weights), *reference_files.given()]):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:32]


def _lines(
    work: WorkPlan, spec: CompressionSpec, inputs: Iterable[tuple[str, tuple[FileInfo, ...]]]
) -> Iterator[str]:
    yield str(NUMERICS)
    yield spec.canonical()
    for use, files in inputs:
        yield from (f"{use} {file.name} {file.sha256}" for file in files)
    for task in work.tasks:
        yield f"{task.number} {task.tensor.name} {task.tensor.dtype} {task.tensor.shape} {task.layer!r}"
