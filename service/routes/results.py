"""What a job has made: its report, its checkpoint, any of its files."""

from fastapi import APIRouter, Response
from starlette.requests import Request

from schemas.report import REPORT_NAME, Report
from service import errors
from service.dependencies import IfNoneMatch, JobId, ResultName, ServicesDep
from service.openapi import BINARY, RANGE_PARAMETER, Responses, answers, refusals
from service.results import download, finished_job, require_json_accepted, result_file

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["results"])

DOWNLOAD = ("ETag", "Repr-Digest")
FILE = {"application/octet-stream": {"schema": BINARY}}
FILE_ANSWERS: Responses = {
    200: {"content": FILE, **answers(*DOWNLOAD, description="The whole file.")},
    206: {"content": FILE, **answers(*DOWNLOAD, "Content-Range", description="The bytes asked for.")},
    304: answers(*DOWNLOAD, description="The client has it."),
}
NO_RESULT = (errors.JobNotFound, errors.NoResult, errors.StoreUnavailable)


@router.head("/report", include_in_schema=False)
@router.get(
    "/report",
    summary="Give the job's report",
    response_model=Report,
    responses=refusals(*NO_RESULT, errors.NotAcceptable, errors.RangeNotSatisfiable)
    | {
        200: answers(*DOWNLOAD, description="The report."),
        206: answers(*DOWNLOAD, "Content-Range", description="The bytes asked for."),
        304: answers(*DOWNLOAD, description="The client has it."),
    },
    openapi_extra=RANGE_PARAMETER,
)
def get_report(
    request: Request, services: ServicesDep, job_id: JobId, if_none_match: IfNoneMatch = None
) -> Response:
    """Send report.json."""
    record = finished_job(services, job_id)
    require_json_accepted(request)
    return download(result_file(services, record, REPORT_NAME), if_none_match)


@router.head("/checkpoint", include_in_schema=False)
@router.get(
    "/checkpoint",
    summary="Download the compressed checkpoint, where it is one file",
    response_class=Response,
    responses=refusals(*NO_RESULT, errors.ShardedResult, errors.RangeNotSatisfiable) | FILE_ANSWERS,
    openapi_extra=RANGE_PARAMETER,
)
def get_result(
    services: ServicesDep,
    job_id: JobId,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Send it, whole or in part."""
    record = finished_job(services, job_id)
    if record.single_file is None:
        raise errors.ShardedResult
    return download(result_file(services, record, record.single_file), if_none_match)


@router.head("/files/{filename}", include_in_schema=False)
@router.get(
    "/files/{filename}",
    summary="Download any result file",
    response_class=Response,
    responses=refusals(*NO_RESULT, errors.FileNotFound, errors.RangeNotSatisfiable) | FILE_ANSWERS,
    openapi_extra=RANGE_PARAMETER,
)
def get_file(
    services: ServicesDep,
    job_id: JobId,
    filename: ResultName,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Send a shard, the index, the single file or report.json."""
    return download(result_file(services, finished_job(services, job_id), filename), if_none_match)
