"""One attempt at a job: claim it, work under a lease, publish the result under a fence."""

import logging
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from schemas.checkpoint import FileInfo
from schemas.format.errors import CheckpointError, listed
from schemas.format.files import CheckpointFiles
from schemas.format.names import single_weight_file
from schemas.job import TERMINAL
from schemas.planning.references import MISFITS, MisfitError, References
from schemas.problem import FieldProblem, Problem, ProblemKind, SpecError
from schemas.report import Report
from schemas.spec import CompressionSpec
from state.cache.store import DecompositionCache
from state.checkpoints.store import CheckpointStore, StoredCheckpoint
from state.data_dir import DataDir
from state.errors import CheckpointNotFound, FilesLocked, JobNotFound, OutOfSpace, RedisUnavailable
from state.files import DISK_FULL, sync_directory
from state.jobs.attempt_lock import attempt_lock
from state.jobs.records import Claim, JobRecord, new_token
from state.jobs.result_files import write_contents
from state.jobs.store import JobStore
from worker.device import choose_device, set_threads
from worker.lease import ClaimLost, Lease, StopSignal, WorkerStopping, retry
from worker.pipeline import CompressionRequest, compress
from worker.progress import Step
from worker.settings import Settings
from worker.trouble import trouble_of

log = logging.getLogger(__name__)
RETRY_S = 1.0
T = TypeVar("T")


def run_attempt(
    job_id: str, jobs: JobStore, settings: Settings, *, worker: str, stopping: StopSignal
) -> None:
    """Work on a job unless it is finished, canceled or claimed by another worker.

    A repeated call is harmless. An error in the input fails the job at once. Any other error returns the job
    to the queue, where the reaper sends its message again after a pause (`worker.trouble`); the job counts
    its attempts until one gets further than those before.
    """
    token = new_token(worker)
    try:
        claim = _persist(lambda: jobs.claim(job_id, token))
    except (OSError, OutOfSpace, FilesLocked):
        log.exception("job %s cannot be claimed; the reaper will send its message again", job_id)
        return
    if claim is None:
        return
    spec = _readable_spec(claim.record)
    if spec is None:
        log.error("job %s was written by another release, or is damaged; another worker may know it", job_id)
        _persist(lambda: jobs.release(job_id, claim.fence))
        return
    log.info("job %s: attempt %d begins", job_id, claim.record.attempt)
    with attempt_lock(DataDir(settings.data_dir), claim):
        _attempt(claim, spec, jobs, settings, stopping=stopping)


def _attempt(
    claim: Claim, spec: CompressionSpec, jobs: JobStore, settings: Settings, *, stopping: StopSignal
) -> None:
    job_id = claim.record.id
    try:
        with Lease(jobs, claim, settings, stopping=stopping) as lease:
            report = _work(claim, spec, settings, lease)
            _publish(claim, report, jobs, settings)
    except ClaimLost:
        owned = False
    except (WorkerStopping, SystemExit):
        log.info("job %s: returned to the queue, since this worker is stopping", job_id)
        owned = _persist(lambda: jobs.release(job_id, claim.fence))
    except (CheckpointError, CheckpointNotFound, SpecError) as error:
        input_problem = _input_problem(error)
        log.info(
            "job %s: attempt %d found invalid input: %s", job_id, claim.record.attempt, input_problem.detail
        )
        owned = _persist(lambda: jobs.fail(job_id, claim.fence, input_problem))
    except Exception as error:
        log.exception("job %s: attempt %d failed", job_id, claim.record.attempt)
        _free_disk_space(error, jobs, settings)
        trouble = trouble_of(error)
        owned = _persist(lambda: retry(jobs, claim, trouble, settings))
    else:
        return
    _discard(claim, jobs, settings, owned=owned)


def _readable_spec(record: JobRecord) -> CompressionSpec | None:
    """Return the spec if this release understands all of the record: half of a spec is another job."""
    try:
        return CompressionSpec.model_validate(record.spec) if record.readable else None
    except ValidationError:
        return None


def _work(claim: Claim, spec: CompressionSpec, settings: Settings, lease: Lease) -> Report:
    record = claim.record
    paths = DataDir(settings.data_dir)
    # Results of earlier attempts; their fences are no longer valid.
    for old in paths.job(record.id).glob("result-*"):
        shutil.rmtree(old, ignore_errors=True)
    checkpoints = CheckpointStore(settings.data_dir, record.owner)
    stored = checkpoints.get(record.checkpoint, only=[file.name for file in record.files])
    _require_same(record.files, stored)
    set_threads(settings.threads, workers=settings.workers)
    request = CompressionRequest(
        checkpoint=stored,
        input_files=record.files,
        spec=spec,
        spool_dir=paths.spool(record.id),
        result_dir=_part_dir(paths, claim),
        job_id=record.id,
        decompositions=_decompositions(record, settings),
        references=_references(record, checkpoints),
        reference_files=record.reference_files,
    )

    def observe(step: Step) -> None:
        lease.observe(step)
        if step.layer is not None:
            count = f"{step.layers_done + 1} of {step.layers_total}"
            log.info("job %s: layer %s (%s)", record.id, step.layer, count)

    return compress(request, device=choose_device(settings.device), observe=observe)


def _require_same(files: Iterable[FileInfo], stored: StoredCheckpoint) -> None:
    """Refuse a checkpoint whose manifest names other files than the job's record."""
    known = {file.name: file for file in stored.files}
    if gone := sorted({file.name for file in files} - known.keys()):
        raise CheckpointError("file-changed", f"The file {listed(gone)} was deleted.")
    if other := sorted(file.name for file in files if known[file.name] != file):
        raise CheckpointError("file-changed", f"The file {listed(other)} was replaced by another.")


def _decompositions(record: JobRecord, settings: Settings) -> DecompositionCache:
    # The finished layers and the result are each about as large as the input.
    spare_bytes = 2 * sum(file.size_bytes for file in record.files)
    return DecompositionCache.shared(
        settings.data_dir, limit_bytes=settings.cache_bytes, spare_bytes=spare_bytes, owner=record.owner
    )


def _free_disk_space(error: Exception, jobs: JobStore, settings: Settings) -> None:
    """Remove the layers of failed jobs and the entire cache if the disk was full, for the next attempt."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        with suppress(RedisUnavailable):
            jobs.upkeep.remove_failed_layers()
        with suppress(FilesLocked):
            DecompositionCache.shared(settings.data_dir, limit_bytes=0).trim()


def _publish(claim: Claim, report: Report, jobs: JobStore, settings: Settings) -> None:
    """Rename the result into place; it counts only if the job accepts this attempt's fence."""
    record, paths = claim.record, DataDir(settings.data_dir)
    result = paths.result(record.id, claim.fence)
    part = _part_dir(paths, claim)
    write_contents(part, report.output.files)
    part.replace(result)
    sync_directory(result.parent)
    single = single_weight_file(file.name for file in report.output.files)
    late = [text for text in report.warnings if text not in record.warnings]
    finish = partial(jobs.finish, record.id, claim.fence, report.totals, single_file=single, warnings=late)
    if _persist(finish):
        shutil.rmtree(paths.spool(record.id), ignore_errors=True)
        log.info("job %s succeeded in %.1f s", record.id, report.totals.seconds)
    else:
        raise ClaimLost(record.id)


def _discard(claim: Claim, jobs: JobStore, settings: Settings, *, owned: bool) -> None:
    """Remove the files of this attempt, unless its result counts; finished layers may serve another."""
    job_id, paths = claim.record.id, DataDir(settings.data_dir)
    shutil.rmtree(_part_dir(paths, claim), ignore_errors=True)
    try:
        record = _persist(lambda: jobs.get(job_id))
    except JobNotFound:
        shutil.rmtree(paths.job(job_id), ignore_errors=True)
        return
    if record.result_fence == claim.fence:
        # A signal to stop may come after the last step has been recorded.
        log.info("job %s: attempt %d was broken off after its end", job_id, claim.record.attempt)
    else:
        if not owned:
            # The error may have been caused by the attempt that took over.
            log.info("job %s: attempt %d is no longer wanted", job_id, claim.record.attempt)
        shutil.rmtree(paths.result(job_id, claim.fence), ignore_errors=True)
    if record.state in TERMINAL - {"failed"}:  # a failed job may be resumed
        shutil.rmtree(paths.spool(job_id), ignore_errors=True)


def _part_dir(paths: DataDir, claim: Claim) -> Path:
    result = paths.result(claim.record.id, claim.fence)
    return result.with_name(result.name + ".part")


def _references(record: JobRecord, checkpoints: CheckpointStore) -> References[CheckpointFiles]:
    found = {}
    for field, files in record.reference_files.given():
        try:
            found[field] = checkpoints.get(record.references[field], only=[file.name for file in files])
            _require_same(files, found[field])
        except CheckpointNotFound as error:
            raise MISFITS[field]("gone", f"The {field} has been deleted.") from error
    return References(**found)


def _persist(transition: Callable[[], T]) -> T:
    """Repeat until Redis is available: an outcome must be recorded, however long that takes."""
    while True:
        try:
            return transition()
        except RedisUnavailable as error:
            log.warning("%s", error)
            time.sleep(RETRY_S)


def _input_problem(error: CheckpointError | CheckpointNotFound | SpecError) -> Problem:
    if isinstance(error, SpecError):
        # Headers could not show it: a weight with NaN stays dense, for example, so the budget is too small.
        field = FieldProblem(pointer="/spec" + error.pointer, detail=error.detail)
        return ProblemKind.INVALID_SPEC.problem(error.detail, errors=(field,))
    if isinstance(error, MisfitError):
        detail = f"{error} Store a {error.field} that fits, and start a new job."
        field = FieldProblem(pointer=f"/spec/{error.field}", detail=detail)
        return error.kind.problem(detail, fault=error.fault, errors=(field,))
    changed = isinstance(error, CheckpointNotFound) or error.fault == "file-changed"
    kind = ProblemKind.CHECKPOINT_CHANGED if changed else ProblemKind.UNUSABLE_CHECKPOINT
    return kind.problem(kind.text(reason=str(error)))
