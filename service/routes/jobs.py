"""Jobs: create, list, show, follow, cancel, resume, delete."""

from functools import partial

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from schemas.job import TERMINAL, Job, JobList, JobRequest
from schemas.problem import ProblemKind
from service.dependencies import (
    CheckpointFilter,
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    JobCursor,
    JobId,
    LastEventId,
    Limit,
    RequestBody,
    RequestBodyDep,
    RootPath,
    Services,
    ServicesDep,
    StateFilter,
    Wait,
)
from service.jobs import deletion
from service.jobs.events import HEADERS, EventStream, Known, Listener, events
from service.jobs.preconditions import check_job_matches
from service.jobs.status import job_list, job_path, job_response, wait_for_change
from service.jobs.submission import enqueue, submit_stored, submit_upload, view_of
from service.json_body import parse_model
from service.openapi import JOB_BODY, described, problem_responses
from service.routes.checkpoints import UPLOAD_PROBLEMS
from service.uploads.form import begin_multipart_upload
from service.uploads.multipart import boundary_of, is_multipart
from service.webhooks.check import check_webhook
from state.checkpoints.store import new_checkpoint_id
from state.jobs.records import JobView

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

# OpenAPI 3.1 cannot tell a stream from its events, so no type is given: it would be read as that of either.
EVENTS = {"text/event-stream": {"schema": {"description": "Events, as the HTML standard writes them."}}}
SUBMIT_PROBLEMS = (
    ProblemKind.CHECKPOINT_NOT_FOUND,
    ProblemKind.CHECKPOINT_INCOMPLETE,
    ProblemKind.CHECKPOINT_GONE,
    ProblemKind.UNSUPPORTED_MEDIA_TYPE,
    ProblemKind.INVALID_JSON,
    ProblemKind.INVALID_SPEC,
    ProblemKind.INVALID_CALIBRATION,
    ProblemKind.INVALID_BASE,
    ProblemKind.INVALID_MULTIPART,
    ProblemKind.INVALID_WEBHOOK,
    ProblemKind.IDEMPOTENCY_MISMATCH,
    ProblemKind.OUT_OF_MEMORY,
    ProblemKind.STORE_UNAVAILABLE,
    ProblemKind.OVER_QUOTA,
)


@router.post(
    "",
    status_code=202,
    summary="Create a job, with its checkpoint or for a stored one",
    response_model=Job,
    responses=problem_responses(*UPLOAD_PROBLEMS, *SUBMIT_PROBLEMS)
    | {202: described("Location", "Retry-After", "ETag", description="The job is accepted.")},
    openapi_extra=JOB_BODY,
)
async def create_job(
    body: RequestBodyDep, services: ServicesDep, root_path: RootPath, idempotency_key: IdempotencyKey = None
) -> Response:
    """Check the checkpoint and the spec, store them, and queue the job."""
    submit = _submit_multipart if is_multipart(body.request) else _submit_json
    view = await submit(body, services, idempotency_key, root_path)
    response = job_response(view, root_path, status=202)
    response.headers["Location"] = job_path(view.record.id, root_path)
    return response


async def _submit_multipart(
    body: RequestBody, services: Services, key: str | None, root_path: str
) -> JobView:
    boundary = boundary_of(body.request)
    await body.check_upload()
    await run_in_threadpool(services.queue.ping)
    await run_in_threadpool(services.quotas.require_jobs, services.jobs)
    begin = partial(begin_multipart_upload, services, new_checkpoint_id(), boundary, with_spec=True)
    content = await body.store(begin)
    return await services.planning.run_in_any_case(submit_upload, services, content, key, root_path)


async def _submit_json(body: RequestBody, services: Services, key: str | None, root_path: str) -> JobView:
    job_request = parse_model(
        JobRequest, await body.json_text(), kind=ProblemKind.INVALID_SPEC, subject="request"
    )
    if job_request.webhook is not None:
        # Asking for the addresses of a host may take long, which must not hold up plans.
        await run_in_threadpool(check_webhook, services, job_request.webhook, pointer="/webhook/url")
    return await services.planning.run(submit_stored, services, job_request, key, root_path)


@router.get(
    "",
    summary="List jobs, newest first",
    responses=problem_responses(ProblemKind.INVALID_REQUEST, ProblemKind.STORE_UNAVAILABLE),
)
def list_jobs(
    services: ServicesDep,
    root_path: RootPath,
    state: StateFilter = None,
    checkpoint: CheckpointFilter = None,
    limit: Limit = 50,
    cursor: JobCursor = None,
) -> JobList:
    """List one page of jobs."""
    page = services.jobs.list(state, checkpoint=checkpoint, limit=limit, cursor=cursor)
    return job_list(page, root_path)


@router.head("/{job_id}", include_in_schema=False)
@router.get(
    "/{job_id}",
    summary="Show a job, at once or when its state changes",
    response_model=Job,
    responses=problem_responses(
        ProblemKind.JOB_NOT_FOUND,
        ProblemKind.INVALID_REQUEST,
        ProblemKind.BUSY,
        ProblemKind.STORE_UNAVAILABLE,
    )
    | {
        200: described("ETag", "Retry-After", description="The job; Retry-After until it has ended."),
        304: described("ETag", "Retry-After", description="Nothing has changed since that ETag."),
    },
)
async def get_job(
    request: Request,
    services: ServicesDep,
    root_path: RootPath,
    job_id: JobId,
    wait: Wait = 0,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Show the job's state and progress."""
    view = await wait_for_change(request, services, job_id, wait_s=wait)
    return job_response(view, root_path, if_none_match)


@router.post(
    "/{job_id}/resume",
    status_code=202,
    summary="Start a failed job again on its finished layers",
    response_model=Job,
    responses=problem_responses(
        ProblemKind.JOB_NOT_FOUND,
        ProblemKind.JOB_NOT_FAILED,
        ProblemKind.FAILURE_STAYS,
        ProblemKind.OVER_QUOTA,
        ProblemKind.UNREADABLE_RECORD,
        ProblemKind.CHECKPOINT_GONE,
        ProblemKind.STORE_UNAVAILABLE,
    )
    | {202: described("Retry-After", "ETag", description="The job is queued again.")},
)
def resume_job(services: ServicesDep, root_path: RootPath, job_id: JobId) -> Response:
    """Queue the job again, whose attempts are counted anew; layers that it has finished are not repeated."""
    record = services.jobs.resume(job_id)
    enqueue(services, record)
    return job_response(view_of(services, record), root_path, status=202)


@router.head("/{job_id}/events", include_in_schema=False)
@router.get(
    "/{job_id}/events",
    summary="Follow a job: server-sent events until it has ended",
    response_class=Response,
    responses=problem_responses(
        ProblemKind.JOB_NOT_FOUND,
        ProblemKind.INVALID_REQUEST,
        ProblemKind.BUSY,
        ProblemKind.STORE_UNAVAILABLE,
    )
    | {
        200: {"content": EVENTS, "description": "The events, as they happen."},
        204: {"description": "The job has ended, and `Last-Event-ID` says that the client knows."},
    },
)
async def get_events(
    request: Request,
    services: ServicesDep,
    root_path: RootPath,
    job_id: JobId,
    last_event_id: LastEventId = None,
) -> Response:
    """Send `state` when the state or the place in the queue changes, `progress`, and at last `end`."""
    view = await run_in_threadpool(services.jobs.view, job_id)
    known = Known.from_id(last_event_id)
    if view.record.state in TERMINAL and not any(events(view, known, root_path)):
        return Response(status_code=204)
    if request.method == "HEAD":
        return Response(headers=HEADERS, media_type=EventStream.media_type)
    listener = Listener(services.owner, request.state.key_is_known)
    return EventStream(services.watches, job_id, known, root_path, listener=listener)


@router.post(
    "/{job_id}/cancel",
    summary="Cancel a job",
    response_model=Job,
    responses=problem_responses(ProblemKind.JOB_NOT_FOUND, ProblemKind.STORE_UNAVAILABLE),
)
def cancel_job(services: ServicesDep, root_path: RootPath, job_id: JobId) -> Response:
    """Cancel the job unless it has ended; a finished job stays as it is."""
    services.jobs.cancel(job_id)
    return job_response(services.jobs.view(job_id), root_path)


@router.delete(
    "/{job_id}",
    status_code=204,
    summary="Delete a job and its files",
    responses=problem_responses(
        ProblemKind.JOB_NOT_FOUND,
        ProblemKind.PRECONDITION_FAILED,
        ProblemKind.STORE_UNAVAILABLE,
        ProblemKind.FILES_LOCKED,
    ),
)
def delete_job(services: ServicesDep, root_path: RootPath, job_id: JobId, if_match: IfMatch = None) -> None:
    """Cancel the job if it has not ended, and delete its files.

    A checkpoint that came in the job's own request is deleted too, unless another unfinished job needs it.
    """
    check_job_matches(services, job_id, root_path, if_match)
    deletion.delete_job(services, job_id)
