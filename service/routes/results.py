"""A job's result: its report, its compressed checkpoint, any of its files, and all of them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from starlette.requests import Request

from schemas.link import Link
from schemas.problem import ProblemKind
from schemas.report import REPORT_NAME, Report
from service.dependencies import IfNoneMatch, ResultName, RootPath, ServicesDep
from service.errors import ProblemError
from service.headers import preferred_type
from service.jobs.archive import archive_response, make_archive
from service.jobs.report_page import send_report_page
from service.jobs.results import SucceededJob, download, result_file, result_files
from service.jobs.status import job_path
from service.openapi import BINARY, RANGE_PARAMETER, Responses, described, problem_responses
from state.times import rfc3339

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["results"])

DOWNLOAD = ("ETag", "Repr-Digest")
FILE = {"application/octet-stream": {"schema": BINARY}}
# Where several ranges are asked for, each part of the body has its own Content-Range.
RANGES = {"multipart/byteranges": {"schema": BINARY}}
PART = described(
    *DOWNLOAD, "Content-Range", description="The requested bytes; Content-Range only if it is one range."
)
TAR = {"application/x-tar": {"schema": BINARY}}
FILE_ANSWERS: Responses = {
    200: {"content": FILE, **described(*DOWNLOAD, description="The whole file.")},
    206: {"content": FILE | RANGES, **PART},
    304: described(*DOWNLOAD, description="The client has it."),
}


def _link(
    link: Annotated[
        str | None,
        Query(
            description="The signature of an address from `POST …/links`, which stands for a key; always the "
            "last parameter.",
            examples=["1767326645.9f86d081…"],
        ),
    ] = None,
) -> None:
    """Name the parameter that `access.authentication` has read."""


MAY_BE_LINKED = Depends(_link)
# How a report is sent; the first is the default.
FORMATS = {"application/json": "json", "text/html": "html"}
Format = Annotated[
    Literal["json", "html"] | None,
    Query(description="The format of the report; wins over `Accept`.", examples=["html"]),
]
# What a link may lead to, below the job's address.
LINKED = r"^(?:archive|checkpoint|report(?:\?format=html)?|files/[A-Za-z0-9._-]{1,128})$"
Target = Annotated[
    str,
    Query(
        pattern=LINKED,
        description="Where the link leads: `archive`, `checkpoint`, `report`, `report?format=html` or "
        "`files/` and a name.",
        examples=["files/model.safetensors"],
    ),
]
RESULT_PROBLEMS = (
    ProblemKind.JOB_NOT_FOUND,
    ProblemKind.NO_RESULT,
    ProblemKind.ENDED_WITHOUT_RESULT,
    ProblemKind.UNREADABLE_RECORD,
    ProblemKind.RESULT_DAMAGED,
    ProblemKind.INVALID_REQUEST,
    ProblemKind.BUSY,
    ProblemKind.STORE_UNAVAILABLE,
)


@router.head("/report", include_in_schema=False, dependencies=[MAY_BE_LINKED])
@router.get(
    "/report",
    dependencies=[MAY_BE_LINKED],
    summary="Show the job's report",
    response_model=Report,
    responses=problem_responses(
        *RESULT_PROBLEMS, ProblemKind.NOT_ACCEPTABLE, ProblemKind.RANGE_NOT_SATISFIABLE
    )
    | {
        200: {
            "content": {"text/html": {"schema": {"type": "string"}}},
            **described(*DOWNLOAD, "Vary", description="The report, as JSON or as one page with plots."),
        },
        206: {"content": {"application/json": {"schema": BINARY}} | RANGES, **PART},
        304: described("ETag", "Vary", description="The client has it."),
    },
    openapi_extra=RANGE_PARAMETER,
)
def get_report(
    request: Request,
    services: ServicesDep,
    record: SucceededJob,
    if_none_match: IfNoneMatch = None,
    format: Format = None,  # noqa: A002 - the name of the parameter
) -> Response:
    """Send report.json, or the page that shows it."""
    wanted = format or FORMATS[preferred_type(request, *FORMATS)]
    file = result_file(services, record, REPORT_NAME)
    if wanted == "html":
        answer = send_report_page(file, record.id, if_none_match)
    else:
        answer = download(file, if_none_match)
    answer.headers["Vary"] = "Accept"
    return answer


@router.head("/checkpoint", include_in_schema=False, dependencies=[MAY_BE_LINKED])
@router.get(
    "/checkpoint",
    dependencies=[MAY_BE_LINKED],
    summary="Download the compressed checkpoint, if it is one weight file",
    response_class=Response,
    responses=problem_responses(
        *RESULT_PROBLEMS, ProblemKind.SHARDED_RESULT, ProblemKind.RANGE_NOT_SATISFIABLE
    )
    | FILE_ANSWERS,
    openapi_extra=RANGE_PARAMETER,
)
def get_result(
    services: ServicesDep, record: SucceededJob, root_path: RootPath, if_none_match: IfNoneMatch = None
) -> Response:
    """Send the file, whole or in part; an index does not make it several."""
    if record.single_file is None:
        raise ProblemError(ProblemKind.SHARDED_RESULT, values={"job": job_path(record.id, root_path)})
    return download(result_file(services, record, record.single_file), if_none_match)


@router.head("/files/{filename}", include_in_schema=False, dependencies=[MAY_BE_LINKED])
@router.get(
    "/files/{filename}",
    dependencies=[MAY_BE_LINKED],
    summary="Download any result file",
    response_class=Response,
    responses=problem_responses(
        *RESULT_PROBLEMS, ProblemKind.FILE_NOT_FOUND, ProblemKind.RANGE_NOT_SATISFIABLE
    )
    | FILE_ANSWERS,
    openapi_extra=RANGE_PARAMETER,
)
def get_file(
    services: ServicesDep, record: SucceededJob, filename: ResultName, if_none_match: IfNoneMatch = None
) -> Response:
    """Send a shard, the index, the single file, a companion or report.json."""
    return download(result_file(services, record, filename), if_none_match)


@router.head("/archive", include_in_schema=False, dependencies=[MAY_BE_LINKED])
@router.get(
    "/archive",
    dependencies=[MAY_BE_LINKED],
    summary="Download all result files as one tar",
    response_class=Response,
    responses=problem_responses(*RESULT_PROBLEMS, ProblemKind.RANGE_NOT_SATISFIABLE)
    | {
        200: {"content": TAR, **described("ETag", description="The whole archive.")},
        206: {"content": TAR, **described("ETag", "Content-Range", description="The requested bytes.")},
        304: described("ETag", description="The client has it."),
    },
    openapi_extra=RANGE_PARAMETER,
)
def get_archive(
    request: Request, services: ServicesDep, record: SucceededJob, if_none_match: IfNoneMatch = None
) -> Response:
    """Send weights, index, companions and report, uncompressed, without a folder around them."""
    assert record.finished_at is not None
    archive = make_archive(result_files(services, record), record.finished_at)
    return archive_response(request, archive, f"{record.id}.tar", if_none_match)


@router.post(
    "/links",
    status_code=201,
    summary="Make a link to a result that needs no key for an hour",
    responses=problem_responses(*RESULT_PROBLEMS),
)
def make_link(
    request: Request, services: ServicesDep, record: SucceededJob, root_path: RootPath, to: Target = "archive"
) -> Link:
    """Sign an address, for a browser or another program that cannot send a key."""
    path, _, query = f"{job_path(record.id, '')}/{to}".partition("?")
    key = request.state.key
    if key is None:
        return Link(href=f"{root_path}{path}{'?' if query else ''}{query}", expires_at=None)
    address, expires_s = services.links.signed(key, path, query)
    return Link(href=f"{root_path}{address}", expires_at=rfc3339(expires_s * 1_000_000))
