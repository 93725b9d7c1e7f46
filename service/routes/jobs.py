"""Jobs: make, watch, list, cancel, delete."""

from functools import partial

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from schemas.job import Job, JobList, JobRequest
from service import errors, submission
from service.dependencies import (
    Cursor,
    IdempotencyKey,
    IfNoneMatch,
    Incoming,
    IncomingDep,
    JobId,
    Limit,
    Services,
    ServicesDep,
    StateFilter,
    Wait,
)
from service.forms import begin_form
from service.job_status import job_list, status_response, watched_job
from service.json_body import is_multipart, parse_model
from service.multipart import boundary_of
from service.openapi import JOB_BODY, answers, refusals
from service.routes.checkpoints import UPLOAD_REFUSALS
from service.submission import submit_form, submit_stored
from state.checkpoints import new_checkpoint_id
from state.records import JobView

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

SUBMIT_REFUSALS = (
    errors.CheckpointNotFound,
    errors.CheckpointIncomplete,
    errors.CheckpointGone,
    errors.UnsupportedMediaType,
    errors.InvalidJson,
    errors.InvalidSpec,
    errors.InvalidCalibration,
    errors.InvalidMultipart,
    errors.IdempotencyMismatch,
    errors.StoreUnavailable,
)


@router.post(
    "",
    status_code=202,
    summary="Make a job, with its checkpoint or for a stored one",
    response_model=Job,
    responses=refusals(*UPLOAD_REFUSALS, *SUBMIT_REFUSALS)
    | {202: answers("Location", "Retry-After", "ETag", description="The job is accepted.")},
    openapi_extra=JOB_BODY,
)
async def create_job(
    body: IncomingDep, services: ServicesDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Check everything, store it, and queue the work."""
    accept = _accept_form if is_multipart(body.request) else _accept_json
    view = await accept(body, services, idempotency_key)
    response = status_response(view, status=202)
    response.headers["Location"] = f"/v1/jobs/{view.record.id}"
    return response


async def _accept_form(body: Incoming, services: Services, key: str | None) -> JobView:
    boundary = boundary_of(body.request)
    await body.announced_bytes()
    await run_in_threadpool(services.queue.ping)
    begin = partial(begin_form, services, new_checkpoint_id(), boundary, with_spec=True)
    content = await body.stream(begin)
    return await run_in_threadpool(submit_form, services, content, key)


async def _accept_json(body: Incoming, services: Services, key: str | None) -> JobView:
    asked = parse_model(JobRequest, await body.json_text(), kind=errors.InvalidSpec, subject="request")
    return await run_in_threadpool(submit_stored, services, asked, key)


@router.get(
    "",
    summary="List jobs, newest first",
    responses=refusals(errors.InvalidRequest, errors.StoreUnavailable),
)
def list_jobs(
    services: ServicesDep, state: StateFilter = None, limit: Limit = 50, cursor: Cursor = None
) -> JobList:
    """Give one page."""
    return job_list(services.jobs.list(state, limit=limit, cursor=cursor))


@router.head("/{job_id}", include_in_schema=False)
@router.get(
    "/{job_id}",
    summary="Show a job, now or when its state has changed",
    response_model=Job,
    responses=refusals(errors.JobNotFound, errors.InvalidRequest, errors.StoreUnavailable)
    | {
        200: answers("ETag", "Retry-After", description="The job; Retry-After until it has ended."),
        304: answers("ETag", "Retry-After", description="Nothing has changed since that ETag."),
    },
)
async def get_job(
    request: Request, services: ServicesDep, job_id: JobId, wait: Wait = 0, if_none_match: IfNoneMatch = None
) -> Response:
    """Say how it stands."""
    view = await watched_job(request, services, job_id, wait_s=wait)
    return status_response(view, if_none_match)


@router.post(
    "/{job_id}/cancel",
    summary="Cancel a job",
    response_model=Job,
    responses=refusals(errors.JobNotFound, errors.StoreUnavailable),
)
def cancel_job(services: ServicesDep, job_id: JobId) -> Response:
    """End it unless it has ended; a finished job stays as it is."""
    services.jobs.cancel(job_id)
    return status_response(services.jobs.view(job_id))


@router.delete(
    "/{job_id}",
    status_code=204,
    summary="Delete a job and its files",
    responses=refusals(errors.JobNotFound, errors.StoreUnavailable),
)
def delete_job(services: ServicesDep, job_id: JobId) -> None:
    """Cancel it if need be and remove all of it, with the checkpoint that came in its own request.

    It stays if another queued or running job needs it; a checkpoint stored by itself always stays.
    """
    submission.delete_job(services, job_id)
