"""Jobs as clients see them, and waiting until one changes."""

import asyncio
import hashlib
from collections.abc import Collection
from contextlib import aclosing, suppress

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from schemas.job import TERMINAL, UNFINISHED, Job, JobList, JobState, Links, ListedJob
from schemas.problem import ProblemKind
from schemas.spec import CompressionSpec
from schemas.webhook import Webhook
from service.dependencies import Services
from service.errors import ProblemError
from service.headers import etag_matches
from service.webhooks.hosts import shown
from state.jobs.records import JobPage, JobView

RETRY_AFTER_S = 1
# How often an answer that waits looks whether its client and its key are still there.
CHECKED_EVERY_S = 0.5
UNREADABLE = ProblemKind.UNREADABLE_RECORD.problem(ProblemKind.UNREADABLE_RECORD.text())


def job_path(job_id: str, root_path: str) -> str:
    """Return the address of a job, as clients reach it."""
    return f"{root_path}/v1/jobs/{job_id}"


def listed_job(view: JobView, root_path: str) -> ListedJob:
    """Return a job as it is listed; one that cannot be read says so."""
    record = view.record
    unreadable = None if record.readable else UNREADABLE
    return ListedJob(
        id=record.id,
        state=record.state,
        checkpoint=record.checkpoint,
        progress=view.progress,
        attempt=record.attempt,
        queue_position=view.queue_position,
        waiting=view.waiting,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        expires_at=view.expires_at,
        error=record.error or unreadable,
        summary=record.summary,
        links=job_links(record.id, root_path),
    )


def _webhook(view: JobView) -> Webhook | None:
    stored = view.record.webhook
    if stored is None:
        return None
    return Webhook(url=shown(stored.url), events=stored.events, deliveries=view.deliveries)


def job_links(job_id: str, root_path: str) -> Links:
    here = job_path(job_id, root_path)
    return Links(
        self=here,
        report=f"{here}/report",
        checkpoint=f"{here}/checkpoint",
        files=f"{here}/files/{{filename}}",
        archive=f"{here}/archive",
        events=f"{here}/events",
        cancel=f"{here}/cancel",
    )


def job_list(page: JobPage, root_path: str) -> JobList:
    jobs = tuple(listed_job(view, root_path) for view in page.jobs)
    return JobList(jobs=jobs, next_cursor=page.next_cursor)


def job_response(
    view: JobView, root_path: str, if_none_match: str | None = None, *, status: int = 200
) -> Response:
    """Answer with a job and an ETag of its content, or with 304 if the client has seen it."""
    content = single_document(view, root_path).model_dump_json().encode()
    etag = _etag(content)
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if view.record.state not in TERMINAL:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if etag_matches(etag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(content, status, media_type="application/json", headers=headers)


def job_etag(view: JobView, root_path: str) -> str:
    """Return the ETag of the job as it is shown alone."""
    return _etag(single_document(view, root_path).model_dump_json().encode())


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def single_document(view: JobView, root_path: str) -> Job:
    """Return a job that is shown alone, and say whether a worker of this release could read its spec."""
    record = view.record
    document = Job(
        **dict(listed_job(view, root_path)),
        spec=record.spec,
        warnings=(*record.warnings, *record.late_warnings),
        webhook=_webhook(view),
    )
    if document.error is None and record.state in UNFINISHED:
        try:
            CompressionSpec.model_validate(record.spec)
        except ValidationError:
            return document.model_copy(update={"error": UNREADABLE})
    return document


async def wait_for_change(request: Request, services: Services, job_id: str, *, wait_s: float) -> JobView:
    """Wait until a job's state changes, `wait_s` is over, the client disconnects, or the service stops."""
    first = await run_in_threadpool(services.jobs.view, job_id)
    states = frozenset({first.record.state}) - TERMINAL
    return await _wait(request, services, first, while_in=states, wait_s=wait_s)


async def wait_for_end(request: Request, services: Services, job_id: str, *, wait_s: float) -> JobView:
    """Do the same until the job has ended."""
    first = await run_in_threadpool(services.jobs.view, job_id)
    return await _wait(request, services, first, while_in=UNFINISHED, wait_s=wait_s)


async def _wait(
    request: Request, services: Services, view: JobView, *, while_in: Collection[JobState], wait_s: float
) -> JobView:
    if wait_s <= 0 or view.record.state not in while_in:
        return view
    job_id = view.record.id
    with services.watches.place(services.owner), suppress(TimeoutError):
        async with (
            asyncio.timeout(min(wait_s, services.settings.max_wait_s)),
            aclosing(services.watches.follow(job_id, quiet_s=CHECKED_EVERY_S)) as changes,
        ):
            async for changed in changes:
                if not request.state.key_is_known():
                    raise ProblemError(ProblemKind.UNAUTHORIZED)
                if changed is not None and changed.record.state not in while_in:
                    return changed
                if await request.is_disconnected():
                    break
    # As it is now; it may be gone.
    return await run_in_threadpool(services.jobs.view, job_id)
