"""One attempt at a job: claim it, work under a lease, publish behind the fence."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from schemas.format.errors import CheckpointError
from schemas.job import TERMINAL, Progress
from schemas.planning.calibration import CalibrationError
from schemas.problem import FieldProblem, Problem, SpecError, problem
from schemas.report import Report
from state.cache import DecompositionCache
from state.checkpoints import CheckpointStore, StoredCheckpoint
from state.data_dir import DataDir
from state.errors import CheckpointNotFound, JobNotFound, OutOfSpace, StoreUnavailable
from state.files import DISK_FULL, sync_directory
from state.jobs import JobStore
from state.records import Claim, JobRecord, new_token
from worker.context import choose_device, set_threads
from worker.lease import Lease, LeaseLost, StopSignal, WorkerStopping
from worker.pipeline import CompressionRequest, compress
from worker.settings import Settings

log = logging.getLogger(__name__)
RETRY_S = 1.0
T = TypeVar("T")


def run_attempt(
    job_id: str, jobs: JobStore, settings: Settings, *, worker: str, stopping: StopSignal
) -> None:
    """Work on a job unless it is finished, canceled or in other hands; harmless twice.

    A fault of the input fails the job at once. Trouble of the machine gives it back to the queue, where the
    reaper finds it a little later; attempts are counted on the job.
    """
    token = new_token(worker)
    try:
        claim = _persist(lambda: jobs.claim(job_id, token))
    except (OSError, OutOfSpace):
        log.exception("job %s cannot be claimed; the reaper offers it again", job_id)
        return
    if claim is None:
        return
    log.info("job %s: attempt %d begins", job_id, claim.record.attempt)
    try:
        with Lease(jobs, claim, heartbeat_s=settings.heartbeat_s, stopping=stopping) as lease:
            report = _work(claim, settings, lease)
            _publish(claim, report, jobs, settings)
    except LeaseLost:
        mine = False
    except (WorkerStopping, SystemExit):
        log.info("job %s: back to the queue, this worker is stopping", job_id)
        mine = _persist(lambda: jobs.release(job_id, claim.fence))
    except (CheckpointError, CheckpointNotFound, SpecError) as error:
        fault = _input_fault(error)
        log.info("job %s cannot be done: %s", job_id, fault.detail)
        mine = _persist(lambda: jobs.fail(job_id, claim.fence, fault))
    except Exception as error:
        log.exception("job %s: attempt %d broke off", job_id, claim.record.attempt)
        _make_room(error, settings)
        trouble = _trouble(error)
        mine = _persist(lambda: jobs.retry(job_id, claim.fence, trouble))
    else:
        return
    if not mine:
        # What this attempt ran into may be what its successor did.
        log.info("job %s: attempt %d is no longer wanted", job_id, claim.record.attempt)
    _discard(claim, jobs, settings)


def _work(claim: Claim, settings: Settings, lease: Lease) -> Report:
    record = claim.record
    paths = DataDir(settings.data_dir)
    # What attempts before this one left: their fences can win no more.
    for old in paths.job(record.id).glob("result-*"):
        shutil.rmtree(old, ignore_errors=True)
    names = [file.name for file in record.files]
    checkpoints = CheckpointStore(settings.data_dir)
    stored = checkpoints.get(record.checkpoint, only=names)
    set_threads(settings.threads)
    request = CompressionRequest(
        checkpoint=stored,
        input_files=record.files,
        spec=record.spec,
        spool_dir=paths.work(record.id),
        result_dir=_part(paths, claim),
        job_id=record.id,
        decompositions=_decompositions(record, settings),
        calibration=_calibration(record, checkpoints),
        calibration_files=record.calibration_files,
    )

    def observe(progress: Progress) -> None:
        lease.observe(progress)
        if progress.layer is not None:
            count = f"{progress.layers_done + 1} of {progress.layers_total}"
            log.info("job %s: layer %s (%s)", record.id, progress.layer, count)

    return compress(request, device=choose_device(settings.device), observe=observe)


def _decompositions(record: JobRecord, settings: Settings) -> DecompositionCache:
    # Finished layers and result are about as large as the input, each.
    spare_bytes = 2 * sum(file.size_bytes for file in record.files)
    return DecompositionCache.shared(
        settings.data_dir, limit_bytes=settings.cache_bytes, spare_bytes=spare_bytes
    )


def _make_room(error: Exception, settings: Settings) -> None:
    """Where the disk was full, give the next attempt all that the cache has taken of it."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        DecompositionCache.shared(settings.data_dir, limit_bytes=0).trim()


def _publish(claim: Claim, report: Report, jobs: JobStore, settings: Settings) -> None:
    """Rename the result into place, then let the record decide whether it counts."""
    record, paths = claim.record, DataDir(settings.data_dir)
    result = paths.result(record.id, claim.fence)
    _part(paths, claim).replace(result)
    sync_directory(result.parent)
    single = report.output.files[0].name if len(report.output.files) == 1 else None
    if _persist(lambda: jobs.finish(record.id, claim.fence, report.totals, single_file=single)):
        shutil.rmtree(paths.work(record.id), ignore_errors=True)
        log.info("job %s succeeded in %.1f s", record.id, report.totals.seconds)
    else:
        raise LeaseLost(record.id)


def _discard(claim: Claim, jobs: JobStore, settings: Settings) -> None:
    """Remove what this attempt wrote; finished layers stay for the next one unless the job wants none."""
    record, paths = claim.record, DataDir(settings.data_dir)
    shutil.rmtree(_part(paths, claim), ignore_errors=True)
    shutil.rmtree(paths.result(record.id, claim.fence), ignore_errors=True)
    try:
        state = _persist(lambda: jobs.get(record.id)).state
    except JobNotFound:
        shutil.rmtree(paths.job(record.id), ignore_errors=True)
        return
    if state in TERMINAL:
        shutil.rmtree(paths.work(record.id), ignore_errors=True)


def _part(paths: DataDir, claim: Claim) -> Path:
    result = paths.result(claim.record.id, claim.fence)
    return result.with_name(result.name + ".part")


def _calibration(record: JobRecord, checkpoints: CheckpointStore) -> StoredCheckpoint | None:
    if record.spec.calibration is None:
        return None
    names = [file.name for file in record.calibration_files]
    try:
        return checkpoints.get(record.spec.calibration, only=names)
    except CheckpointNotFound as error:
        raise CalibrationError("gone", "The calibration is not there any more.") from error


def _persist(transition: Callable[[], T]) -> T:
    """Try until Redis is back: what was done must be said, however long it takes."""
    while True:
        try:
            return transition()
        except StoreUnavailable as error:
            log.warning("%s", error)
            time.sleep(RETRY_S)


def _input_fault(error: CheckpointError | CheckpointNotFound | SpecError) -> Problem:
    if isinstance(error, SpecError):
        # What headers do not say: a weight with NaN stays dense, and a budget no longer suffices.
        field = FieldProblem(pointer="/spec" + error.pointer, detail=error.detail)
        return problem("invalid-spec", "The spec is not valid", 422, error.detail, errors=(field,))
    if isinstance(error, CalibrationError):
        detail = f"{error} Store a calibration that fits, and start a new job."
        where = FieldProblem(pointer="/spec/calibration", detail=detail)
        kind = f"invalid-calibration:{error.code}"
        return problem(kind, "The calibration does not fit", 422, detail, errors=(where,))
    return problem(
        "unusable-checkpoint",
        "The checkpoint cannot be read",
        422,
        f"{error} Store the checkpoint again and start a new job.",
    )


def _trouble(error: Exception) -> Problem:
    return problem(
        "worker-trouble",
        "The worker could not finish the job",
        500,
        f"Every attempt broke off, the last one with {type(error).__name__}. "
        "Look at the worker's log, mend the cause (memory, disk) and start the job again.",
    )
