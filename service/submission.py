"""Accepting a job: files are durable, then the record, then the message."""

import hashlib
import json
import logging
from contextlib import suppress

from schemas.format.errors import listed
from schemas.format.files import CheckpointFiles
from schemas.job import NO_PROGRESS, JobRequest
from schemas.planning.layer import Plan
from schemas.spec import CompressionSpec
from service import errors
from service.dependencies import Services
from service.forms import FormContent
from service.planning import (
    IN_FORM,
    IN_REQUEST,
    SPEC_IN_FORM,
    SPEC_IN_REQUEST,
    Calibration,
    bounded_plan,
    find_calibration,
)
from state.checkpoints import StoredCheckpoint
from state.errors import CheckpointInUse, CheckpointNotFound, StoreUnavailable
from state.records import Idempotency, JobRecord, JobView, NewJob

log = logging.getLogger("eckart.service")


def submit_stored(services: Services, request: JobRequest, key: str | None) -> JobView:
    """Accept a job for a checkpoint that is already stored."""
    stored = complete_checkpoint(services, request.checkpoint)
    calibration = find_calibration(services, request.spec, pointer=IN_REQUEST)
    idempotency = _idempotency(key, request.spec, request.checkpoint, calibration)
    plan = bounded_plan(
        CheckpointFiles(stored.headers, stored.index), request.spec, calibration, place=SPEC_IN_REQUEST
    )
    record = _submit(services, stored, request.spec, plan, calibration, idempotency, one_shot=False)
    return _view(services, record)


def submit_form(services: Services, content: FormContent, key: str | None) -> JobView:
    """Accept a job with its files; they go where it is not accepted, or is a repetition."""
    assert content.spec is not None
    kept = False
    try:
        stored = services.checkpoints.get(content.checkpoint_id)
        if not stored.complete:
            raise errors.InvalidCheckpoint(
                "missing-files", lacking_upload(stored.missing, unrelated=stored.unrelated)
            )
        digests = sorted((file.name, file.sha256) for file in stored.files)
        calibration = find_calibration(services, content.spec, pointer=IN_FORM)
        idempotency = _idempotency(key, content.spec, digests, calibration)
        plan = bounded_plan(
            CheckpointFiles(stored.headers, stored.index), content.spec, calibration, place=SPEC_IN_FORM
        )
        record = _submit(services, stored, content.spec, plan, calibration, idempotency, one_shot=True)
        kept = record.checkpoint == content.checkpoint_id
        return _view(services, record)
    finally:
        if not kept:
            services.checkpoints.delete(content.checkpoint_id)


def complete_checkpoint(services: Services, checkpoint_id: str) -> StoredCheckpoint:
    """Find a checkpoint that work can begin on."""
    stored = services.checkpoints.get(checkpoint_id)
    if not stored.complete:
        raise errors.CheckpointIncomplete(_lacking(stored))
    return stored


def _lacking(stored: StoredCheckpoint) -> str:
    if stored.unrelated:
        return (
            f"It holds {_together(stored.unrelated)} but no index: "
            "upload their index, or store each file under an id of its own."
        )
    return f"Upload the missing files first: {', '.join(stored.missing)}."


def lacking_upload(missing: tuple[str, ...], *, unrelated: tuple[str, ...]) -> str:
    """Say which files a form lacks; `unrelated`: files without an index that are not shards."""
    if unrelated:
        return (
            f"The upload holds {_together(unrelated)} but no index: "
            "send their index with them, or each file in a request of its own."
        )
    return f"The upload lacks {', '.join(missing)}."


def _together(names: tuple[str, ...]) -> str:
    return " and ".join(names) if len(names) == 2 else listed(names)


def _submit(
    services: Services,
    stored: StoredCheckpoint,
    spec: CompressionSpec,
    plan: Plan,
    calibration: Calibration | None,
    idempotency: Idempotency | None,
    *,
    one_shot: bool,
) -> JobRecord:
    new = NewJob(
        checkpoint=stored.id,
        spec=spec,
        files=stored.files,
        calibration_files=calibration.files if calibration else (),
        warnings=plan.warnings,
        one_shot=one_shot,
    )
    record = services.jobs.create(new, idempotency=idempotency)
    _ring(services, record)
    return record


def _view(services: Services, record: JobRecord) -> JobView:
    """Look at an accepted job; it stays accepted where Redis goes away in this very moment."""
    try:
        return services.jobs.view(record.id)
    except StoreUnavailable:
        return JobView(record, NO_PROGRESS, queue_position=None)


def _ring(services: Services, record: JobRecord) -> None:
    """Tell the workers of a new job; should that fail, the reaper does it."""
    if record.state != "queued":
        return
    try:
        services.queue.send(record.id)
    except StoreUnavailable:
        log.warning("job %s is accepted, but its message could not be sent; the reaper will", record.id)


def _idempotency(
    key: str | None, spec: CompressionSpec, content: object, calibration: Calibration | None
) -> Idempotency | None:
    if key is None:
        return None
    parts = [spec.canonical(), content]
    if calibration is not None:
        parts.append(sorted((file.name, file.sha256) for file in calibration.files))
    asked = json.dumps(parts).encode()
    return Idempotency(key=key, fingerprint=hashlib.sha256(asked).hexdigest())


def delete_job(services: Services, job_id: str) -> None:
    """Remove the record last: whatever fails before, the same request can be repeated."""
    record = services.jobs.cancel(job_id)
    if record.one_shot:
        with suppress(CheckpointInUse, CheckpointNotFound):
            delete_checkpoint(services, record.checkpoint)
    services.jobs.delete(job_id)


def delete_checkpoint(services: Services, checkpoint_id: str) -> None:
    """Remove all its files, unless a job needs them."""
    with services.jobs.locked_for_deletion(checkpoint_id):
        services.checkpoints.delete(checkpoint_id)
