"""Plans: what a job would do, without doing it."""

from functools import partial

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from schemas.job import JobRequest
from schemas.plan import PlanDocument
from schemas.planning.documents import plan_document
from service import errors
from service.dependencies import IncomingDep, Services, ServicesDep
from service.json_body import is_multipart, parse_model
from service.multipart import boundary_of
from service.openapi import PLAN_BODY, refusals
from service.plan_form import PlanContent, begin_plan_form, plan_form_limit_bytes
from service.planning import IN_FORM, IN_REQUEST, SPEC_IN_FORM, bounded_plan, find_calibration, resolved_plan
from service.submission import complete_checkpoint

router = APIRouter(prefix="/v1/plans", tags=["plans"])


@router.post(
    "",
    summary="Say what a job would do to each layer",
    responses=refusals(
        errors.CheckpointNotFound,
        errors.RequestTimeout,
        errors.CheckpointIncomplete,
        errors.TooLarge,
        errors.UnsupportedMediaType,
        errors.EncodedBody,
        errors.InvalidJson,
        errors.InvalidSpec,
        errors.InvalidCalibration,
        errors.InvalidMultipart,
        errors.InvalidCheckpoint,
        errors.InvalidRequest,
    ),
    openapi_extra=PLAN_BODY,
)
async def plan_job(body: IncomingDep, services: ServicesDep) -> PlanDocument:
    """Plan from a stored checkpoint or from the headers in the request; nothing is computed or kept."""
    if is_multipart(body.request):
        limit_bytes = plan_form_limit_bytes(services)
        begin = partial(begin_plan_form, services, boundary_of(body.request))
        body.check_head(limit_bytes=limit_bytes)
        content = await body.stream(begin, limit_bytes=limit_bytes)
        return await run_in_threadpool(_plan_form, services, content)
    asked = parse_model(JobRequest, await body.json_text(), kind=errors.InvalidSpec, subject="request")
    return await run_in_threadpool(_plan, services, asked)


def _plan(services: Services, asked: JobRequest) -> PlanDocument:
    stored = complete_checkpoint(services, asked.checkpoint)
    calibration = find_calibration(services, asked.spec, pointer=IN_REQUEST)
    plan = resolved_plan(services, stored, asked.spec, calibration)
    return plan_document(stored.id, stored.tensors, plan)


def _plan_form(services: Services, content: PlanContent) -> PlanDocument:
    calibration = find_calibration(services, content.spec, pointer=IN_FORM)
    plan = bounded_plan(content.files, content.spec, calibration, place=SPEC_IN_FORM)
    return plan_document(None, content.files.tensors, plan)
