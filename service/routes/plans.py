"""Plans: what a job would do, without doing it."""

from dataclasses import replace
from functools import partial

from fastapi import APIRouter
from starlette.responses import Response

from schemas.job import JobRequest
from schemas.plan import PlanDocument
from schemas.planning.documents import plan_text
from schemas.problem import ProblemKind
from service.dependencies import RequestBodyDep, Services, ServicesDep
from service.jobs.submission import complete_checkpoint
from service.json_body import parse_model
from service.long_document import LongDocument
from service.openapi import PLAN_BODY, problem_responses
from service.planning.header_form import HeaderContent, begin_header_plan, header_plan_limit_bytes
from service.planning.plans import (
    SPEC_IN_JSON,
    SPEC_IN_MULTIPART,
    find_references,
    make_bounded_plan,
    make_resolved_plan,
    require_difference,
)
from service.uploads.multipart import boundary_of, is_multipart

router = APIRouter(prefix="/v1/plans", tags=["plans"])


@router.post(
    "",
    summary="Plan a job: what it would do to each layer",
    response_model=PlanDocument,
    responses=problem_responses(
        ProblemKind.CHECKPOINT_NOT_FOUND,
        ProblemKind.REQUEST_TIMEOUT,
        ProblemKind.CHECKPOINT_INCOMPLETE,
        ProblemKind.TOO_LARGE,
        ProblemKind.UNSUPPORTED_MEDIA_TYPE,
        ProblemKind.ENCODED_BODY,
        ProblemKind.INVALID_JSON,
        ProblemKind.INVALID_SPEC,
        ProblemKind.INVALID_CALIBRATION,
        ProblemKind.INVALID_BASE,
        ProblemKind.INVALID_MULTIPART,
        ProblemKind.INVALID_CHECKPOINT,
        ProblemKind.INVALID_REQUEST,
        ProblemKind.BUSY,
    ),
    openapi_extra=PLAN_BODY,
)
async def plan_job(body: RequestBodyDep, services: ServicesDep) -> Response:
    """Plan for a stored checkpoint, or from the headers in the request. Nothing is computed or stored."""
    if is_multipart(body.request):
        begin = partial(begin_header_plan, services, boundary_of(body.request))
        content = await body.collect(begin, limit_bytes=header_plan_limit_bytes(services))
        document = await services.planning.run(_plan_headers, services, content)
        return document.response()
    request = parse_model(
        JobRequest, await body.json_text(), kind=ProblemKind.INVALID_SPEC, subject="request"
    )
    return (await services.planning.run(_plan_stored, services, request)).response()


def _plan_stored(services: Services, request: JobRequest) -> LongDocument:
    """Plan, and write the document in this thread too."""
    stored = complete_checkpoint(services, request)
    references = find_references(services, request.spec, pointer=SPEC_IN_JSON)
    require_difference(stored, references, pointer=SPEC_IN_JSON)
    plan = make_resolved_plan(services, stored, request.spec, references, pointer=SPEC_IN_JSON)
    return LongDocument(plan_text(stored.id, plan))


def _plan_headers(services: Services, content: HeaderContent) -> LongDocument:
    references = find_references(services, content.spec, pointer=SPEC_IN_MULTIPART)
    plan = make_bounded_plan(content.files, content.spec, references, pointer=SPEC_IN_MULTIPART)
    plan = replace(plan, warnings=(*content.warnings, *plan.warnings))
    return LongDocument(plan_text(None, plan))
