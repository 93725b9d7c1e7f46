"""Resumable uploads by tus 1.0.0: begin one, send bytes of it, ask how far it is, end it."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from schemas.problem import ProblemKind
from service.dependencies import RequestBody, RequestBodyDep, RootPath, Services, ServicesDep, UploadId
from service.errors import ProblemError
from service.openapi import OFFSET_BODY, described, problem_responses
from service.uploads.form import check_file_name
from service.uploads.tus import (
    MEDIA_TYPE,
    PATH,
    SpokenVersion,
    UploadChecksum,
    UploadLength,
    UploadMetadata,
    UploadOffset,
    capabilities,
    upload_headers,
)
from state.checkpoints.store import checked_limit_bytes
from state.uploads.checksum import Checksum
from state.uploads.folder import UploadRecord

router = APIRouter(prefix=PATH, tags=["uploads"])

KNOWN = (ProblemKind.UPLOAD_NOT_FOUND, ProblemKind.TUS_VERSION)
APPEND_PROBLEMS = (
    ProblemKind.UNSUPPORTED_CHECKSUM,
    ProblemKind.REQUEST_TIMEOUT,
    ProblemKind.CONTENT_CONFLICT,
    ProblemKind.TUS_VERSION,
    ProblemKind.TOO_LARGE,
    ProblemKind.ENCODED_BODY,
    ProblemKind.UNSUPPORTED_MEDIA_TYPE,
    ProblemKind.INVALID_REQUEST,
    ProblemKind.INVALID_CHECKPOINT,
    ProblemKind.PARTIAL_BODY,
    ProblemKind.DIGEST_MISMATCH,
    ProblemKind.BUSY,
    ProblemKind.OVER_QUOTA,
    ProblemKind.CHECKSUM_MISMATCH,
    ProblemKind.FILES_LOCKED,
    ProblemKind.OUT_OF_SPACE,
)
WAY = ("Tus-Resumable", "Upload-Offset", "Upload-Expires")
CAPABILITIES = ("Tus-Version", "Tus-Extension", "Tus-Checksum-Algorithm", "Tus-Max-Size")


@router.options(
    "",
    status_code=204,
    response_class=Response,
    summary="Say what the service can do of tus",
    responses=problem_responses() | {204: described("Tus-Resumable", *CAPABILITIES)},
)
def show_capabilities(services: ServicesDep) -> Response:
    """Name the version, the extensions, the algorithms of checksums and the largest file."""
    return Response(status_code=204, headers=capabilities(max_bytes=services.settings.max_upload_bytes))


@router.post(
    "",
    status_code=201,
    response_class=Response,
    summary="Begin a resumable upload",
    dependencies=[SpokenVersion],
    responses=problem_responses(*APPEND_PROBLEMS)
    | {201: described("Location", *WAY, "ETag", "Repr-Digest", description="Begun at Location.")},
    openapi_extra=OFFSET_BODY,
)
async def create_upload(
    body: RequestBodyDep,
    services: ServicesDep,
    root_path: RootPath,
    upload_length: UploadLength,
    metadata: UploadMetadata,
    checksum: UploadChecksum,
    content_type: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Announce a file. The first bytes may be in the body; a file without bytes is stored at once."""
    with_bytes = content_type == MEDIA_TYPE
    limit_bytes = services.settings.max_upload_bytes
    checked_limit_bytes(check_file_name(metadata.filename), upload_length, limit_bytes=limit_bytes)
    await body.require_room(upload_length)
    record = await run_in_threadpool(
        services.resumable.create,
        metadata.checkpoint,
        metadata.filename,
        size_bytes=upload_length,
        limit_bytes=limit_bytes,
        metadata=metadata.text,
        expected_sha256=metadata.sha256,
        most=services.settings.owner_uploads,
    )
    if with_bytes or upload_length == 0:
        record = await _receive(body, services, record, checksum)
    location = f"{root_path}{PATH}/{record.id}"
    return Response(status_code=201, headers={"Location": location, **upload_headers(record)})


@router.head(
    "/{upload_id}",
    status_code=200,
    response_class=Response,
    summary="Ask how far a resumable upload is",
    dependencies=[SpokenVersion],
    responses=problem_responses(*KNOWN)
    | {
        200: described(
            *WAY,
            "Upload-Length",
            "Upload-Metadata",
            "ETag",
            "Repr-Digest",
            description="The offset at which to go on. At the file's size it is stored, with this digest.",
        )
    },
)
def show_upload(services: ServicesDep, upload_id: UploadId) -> Response:
    """Answer with the number of bytes that are on the disk, in Upload-Offset."""
    record = services.resumable.get(upload_id)
    told = {"Upload-Length": str(record.size_bytes), "Upload-Metadata": record.metadata}
    return Response(status_code=200, headers={**upload_headers(record), **told})


@router.patch(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    summary="Send bytes of a resumable upload",
    dependencies=[SpokenVersion],
    responses=problem_responses(
        *APPEND_PROBLEMS,
        ProblemKind.UPLOAD_NOT_FOUND,
        ProblemKind.OFFSET_MISMATCH,
        ProblemKind.UPLOAD_LOCKED,
    )
    | {204: described(*WAY, "ETag", "Repr-Digest", description="Received; after the last byte, stored.")},
    openapi_extra=OFFSET_BODY,
)
async def append_bytes(
    body: RequestBodyDep,
    services: ServicesDep,
    upload_id: UploadId,
    upload_offset: UploadOffset,
    checksum: UploadChecksum,
    content_type: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Append the body to what has arrived. With the last byte the file is stored, as a PUT stores it."""
    record = await run_in_threadpool(services.resumable.get, upload_id)
    if content_type != MEDIA_TYPE:
        raise ProblemError(ProblemKind.UNSUPPORTED_MEDIA_TYPE, values={"media_types": MEDIA_TYPE})
    record.check_offset(upload_offset)
    record = await _receive(body, services, record, checksum)
    return Response(status_code=204, headers=upload_headers(record))


@router.delete(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    summary="End a resumable upload",
    dependencies=[SpokenVersion],
    responses=problem_responses(*KNOWN, ProblemKind.UPLOAD_LOCKED) | {204: described("Tus-Resumable")},
)
def delete_upload(services: ServicesDep, upload_id: UploadId) -> Response:
    """Remove what has arrived. A file that is stored already stays."""
    services.quotas.deleted(services.owner, services.resumable.delete(upload_id))
    return Response(status_code=204)


async def _receive(
    body: RequestBody, services: Services, record: UploadRecord, checksum: Checksum | None
) -> UploadRecord:
    limit_bytes = record.size_bytes - record.offset
    await body.check_upload(limit_bytes=limit_bytes)
    if record.complete:
        return record
    begin = partial(services.resumable.append, record.id, offset=record.offset, checksum=checksum)
    return await body.store(begin, limit_bytes=limit_bytes, kept=checksum is None)
