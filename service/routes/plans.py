"""Plans: what a job would do, without doing it."""

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from schemas.job import JobRequest
from schemas.plan import PlanDocument
from schemas.planning.documents import plan_document
from service import errors
from service.calibration import IN_REQUEST, find_calibration
from service.deps import IncomingDep, Services, ServicesDep
from service.openapi import JSON_BODY, refusals
from service.planning import foreseen_plan
from service.strictjson import parse_model
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
    ),
    openapi_extra=JSON_BODY,
)
async def plan_job(body: IncomingDep, services: ServicesDep) -> PlanDocument:
    """Plan from the headers and from what earlier jobs found out; nothing is computed or kept."""
    asked = parse_model(JobRequest, await body.json_text(), kind=errors.InvalidSpec, subject="request")
    return await run_in_threadpool(_plan, services, asked)


def _plan(services: Services, asked: JobRequest) -> PlanDocument:
    stored = complete_checkpoint(services, asked.checkpoint)
    calibration = find_calibration(services, asked.spec, pointer=IN_REQUEST)
    plan = foreseen_plan(services, stored, asked.spec, calibration)
    return plan_document(stored.id, stored.tensors, plan)
