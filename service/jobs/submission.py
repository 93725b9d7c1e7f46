"""Creating jobs: the files are durable first, then the record, then the message is sent."""

import hashlib
import json
import logging
from collections.abc import Collection

from schemas.job import NO_PROGRESS, JobRequest
from schemas.planning.references import References
from schemas.problem import ProblemKind
from schemas.spec import CompressionSpec
from schemas.warning import first_warnings
from schemas.webhook import WebhookRequest
from service.dependencies import Services
from service.errors import ProblemError
from service.planning.plans import (
    SPEC_IN_JSON,
    SPEC_IN_MULTIPART,
    check_memory,
    find_references,
    join_names,
    make_bounded_plan,
    require_complete,
    require_difference,
)
from service.uploads.form import UploadContent
from state.checkpoints.consistency import strays
from state.checkpoints.store import StoredCheckpoint
from state.errors import CheckpointNotFound, RedisUnavailable
from state.jobs.records import Idempotency, JobRecord, JobView, NewJob, StoredWebhook

log = logging.getLogger("eckart.service")


def submit_stored(services: Services, request: JobRequest, key: str | None, root_path: str) -> JobView:
    """Create a job for a stored checkpoint; its webhook is checked already."""
    stored = complete_checkpoint(services, request)
    webhook = _stored(request.webhook, root_path)
    return view_of(services, _create(services, stored, request.spec, webhook, key))


def submit_upload(services: Services, content: UploadContent, key: str | None, root_path: str) -> JobView:
    """Create a job with the files of its request, which are deleted if the job is refused or a repetition."""
    assert content.spec is not None
    used = False
    try:
        stored = services.checkpoints.get(content.checkpoint_id)
        if not stored.complete:
            detail = missing_from_upload(stored.missing, stored.headers, unrelated=stored.unrelated)
            raise ProblemError(ProblemKind.INVALID_CHECKPOINT, detail, fault="missing-files")
        webhook = _stored(content.webhook, root_path)
        record = _create(services, stored, content.spec, webhook, key, upload=content)
        used = record.checkpoint == content.checkpoint_id
        return view_of(services, record)
    finally:
        if not used:
            services.quotas.deleted(services.owner, services.checkpoints.delete(content.checkpoint_id))


def complete_checkpoint(services: Services, request: JobRequest) -> StoredCheckpoint:
    """Return the stored checkpoint that a request names, which must have all its files."""
    try:
        stored = services.checkpoints.get(request.checkpoint)
    except CheckpointNotFound as error:
        raise ProblemError(ProblemKind.CHECKPOINT_NOT_FOUND, pointer="/checkpoint") from error
    require_complete(stored, pointer="/checkpoint")
    return stored


def missing_from_upload(
    missing: tuple[str, ...], sent: Collection[str], *, unrelated: tuple[str, ...]
) -> str:
    """Describe what a body of weights lacks; `unrelated` have no index and are not named like shards."""
    if unrelated:
        return (
            f"The upload holds {join_names(unrelated)} but no index: "
            "send their index with them, or each file in a request of its own."
        )
    lacks = f"The upload lacks {', '.join(missing)}."
    extra = strays(sent)
    if not extra:
        return lacks
    return f"{lacks} Not part of that checkpoint: {join_names(extra)}."


def _create(
    services: Services,
    stored: StoredCheckpoint,
    spec: CompressionSpec,
    webhook: StoredWebhook | None,
    key: str | None,
    *,
    upload: UploadContent | None = None,
) -> JobRecord:
    """Plan a job and create it; `upload` is the body that its checkpoint came in, if it did."""
    pointer = SPEC_IN_JSON if upload is None else SPEC_IN_MULTIPART
    references = find_references(services, spec, pointer=pointer)
    require_difference(stored, references, pointer=pointer)
    plan = make_bounded_plan(stored, spec, references, pointer=pointer)
    check_memory(services, plan)
    # A repeated upload has another id, and the same bytes.
    content = stored.id if upload is None else _digests(stored)
    told = () if upload is None else upload.warnings
    new = NewJob(
        checkpoint=stored.id,
        spec=spec.document(),
        files=stored.files,
        calibration_files=references.calibration.files if references.calibration else (),
        base_files=references.base.files if references.base else (),
        warnings=first_warnings((*told, *plan.warnings)),
        webhook=webhook,
        owns_checkpoint=upload is not None,
    )
    idempotency = _idempotency(key, spec, content, references, webhook)
    record = services.jobs.create(new, idempotency=idempotency)
    enqueue(services, record)
    return record


def view_of(services: Services, record: JobRecord) -> JobView:
    # The job is accepted; it stays so if Redis becomes unavailable at this very moment.
    try:
        return services.jobs.view(record.id)
    except RedisUnavailable:
        return JobView(record, NO_PROGRESS, queue_position=None)


def enqueue(services: Services, record: JobRecord) -> None:
    """Send the message for a queued job; if that fails, the reaper sends it later."""
    if record.state != "queued":
        return
    try:
        services.queue.send(record.id)
    except RedisUnavailable:
        log.warning("job %s is accepted, but not enqueued; the reaper will enqueue it", record.id)


def _stored(webhook: WebhookRequest | None, root_path: str) -> StoredWebhook | None:
    if webhook is None:
        return None
    return StoredWebhook(url=webhook.url, events=webhook.events, root_path=root_path)


def _idempotency(
    key: str | None,
    spec: CompressionSpec,
    content: str | list[tuple[str, str]],
    references: References[StoredCheckpoint],
    webhook: StoredWebhook | None,
) -> Idempotency | None:
    if key is None:
        return None
    parts = [spec.canonical(), content]
    for _, stored in references.given():
        parts.append(_digests(stored))
    if webhook is not None:
        parts.append(webhook.url)
    asked = json.dumps(parts).encode()
    return Idempotency(key=key, fingerprint=hashlib.sha256(asked).hexdigest())


def _digests(stored: StoredCheckpoint) -> list[tuple[str, str]]:
    return sorted((file.name, file.sha256) for file in stored.files)
