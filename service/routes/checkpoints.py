"""Stored checkpoints: upload, show, delete."""

from functools import partial

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, Response

from schemas.checkpoint import Checkpoint, CheckpointList, FileInfo
from schemas.planning.documents import FIRST_PAGE, TENSORS_PER_PAGE, checkpoint_text
from schemas.problem import ProblemKind
from service.dependencies import (
    CheckpointCursor,
    CheckpointId,
    FileName,
    IfMatch,
    Limit,
    NewCheckpointId,
    RequestBodyDep,
    Services,
    ServicesDep,
    TensorCursor,
    TensorLimit,
)
from service.headers import content_headers
from service.jobs import deletion
from service.jobs.preconditions import check_checkpoint_matches
from service.long_document import LongDocument
from service.openapi import FILES_BODY, RAW_BODY, described, problem_responses
from service.uploads.form import UploadContent, begin_file, begin_multipart_upload
from service.uploads.multipart import boundary_of
from service.uploads.preconditions import ExpectedSha256, check_preconditions
from state.checkpoints.store import StoredCheckpoint, check_chosen_id, checked_limit_bytes

router = APIRouter(prefix="/v1/checkpoints", tags=["checkpoints"])

UPLOAD_PROBLEMS = (
    ProblemKind.REQUEST_TIMEOUT,
    ProblemKind.CONTENT_CONFLICT,
    ProblemKind.TOO_LARGE,
    ProblemKind.ENCODED_BODY,
    ProblemKind.INVALID_REQUEST,
    ProblemKind.INVALID_CHECKPOINT,
    ProblemKind.PARTIAL_BODY,
    ProblemKind.OUT_OF_SPACE,
    ProblemKind.BUSY,
    ProblemKind.FILES_LOCKED,
    ProblemKind.OVER_QUOTA,
)


@router.put(
    "/{checkpoint_id}/{filename}",
    status_code=201,
    summary="Store one file of a checkpoint",
    response_model=FileInfo,
    dependencies=[Depends(check_preconditions)],
    responses=problem_responses(
        *UPLOAD_PROBLEMS, ProblemKind.DIGEST_MISMATCH, ProblemKind.PRECONDITION_FAILED
    )
    | {
        200: {"model": FileInfo, **described("ETag", "Repr-Digest", description="The same bytes again.")},
        201: described("ETag", "Repr-Digest", description="Stored."),
    },
    openapi_extra=RAW_BODY,
)
async def put_file(
    body: RequestBodyDep,
    services: ServicesDep,
    checkpoint_id: NewCheckpointId,
    filename: FileName,
    expected_sha256: ExpectedSha256,
) -> Response:
    """Stream the body to the disk. Its safetensors header is checked as it arrives."""
    check_chosen_id(checkpoint_id)
    nbytes = await body.check_upload()
    # Before any of the body is read.
    checked_limit_bytes(filename, nbytes, limit_bytes=services.settings.max_upload_bytes)
    begin = partial(
        begin_file,
        services,
        checkpoint_id,
        filename,
        content_bytes=nbytes,
        expected_sha256=expected_sha256,
    )
    stored = await body.store(begin)
    return JSONResponse(
        stored.info.model_dump(), 201 if stored.created else 200, headers=content_headers(stored.info.sha256)
    )


@router.post(
    "/{checkpoint_id}",
    status_code=201,
    summary="Store several files of a checkpoint at once",
    response_model=Checkpoint,
    responses=problem_responses(
        *UPLOAD_PROBLEMS, ProblemKind.UNSUPPORTED_MEDIA_TYPE, ProblemKind.INVALID_MULTIPART
    )
    | {200: {"model": Checkpoint, "description": "The same bytes again."}},
    openapi_extra=FILES_BODY,
)
async def post_files(body: RequestBodyDep, services: ServicesDep, checkpoint_id: NewCheckpointId) -> Response:
    """Stream the parts to the disk. If one file is refused, none is stored."""
    check_chosen_id(checkpoint_id)
    boundary = boundary_of(body.request)
    await body.check_upload()
    content = await body.store(
        partial(begin_multipart_upload, services, checkpoint_id, boundary, with_spec=False)
    )
    document = await services.planning.run_in_any_case(_stored_document, services, content)
    response = document.response()
    response.status_code = 201 if any(file.created for file in content.files) else 200
    return response


def _stored_document(services: Services, content: UploadContent) -> LongDocument:
    return _document(services.checkpoints.get(content.checkpoint_id), told=content.warnings)


@router.head("", include_in_schema=False)
@router.get(
    "",
    summary="List stored checkpoints, the latest first",
    responses=problem_responses(ProblemKind.INVALID_REQUEST, ProblemKind.BUSY),
)
async def get_checkpoints(
    services: ServicesDep, limit: Limit = 50, cursor: CheckpointCursor = None
) -> CheckpointList:
    """List one page; a checkpoint counts as of the time when its latest file was stored."""
    return await services.planning.run(services.checkpoints.list, limit=limit, cursor=cursor)


@router.head("/{checkpoint_id}", include_in_schema=False)
@router.get(
    "/{checkpoint_id}",
    summary="Show a checkpoint's files and tensors",
    response_model=Checkpoint,
    responses=problem_responses(
        ProblemKind.CHECKPOINT_NOT_FOUND, ProblemKind.INVALID_REQUEST, ProblemKind.BUSY
    ),
)
async def get_checkpoint(
    services: ServicesDep,
    checkpoint_id: CheckpointId,
    limit: TensorLimit = TENSORS_PER_PAGE,
    cursor: TensorCursor = None,
) -> Response:
    """Show the stored files, the missing ones, and a page of tensors with those that would be factored."""
    first = int(cursor or 0)
    page = range(first, first + limit)
    return (await services.planning.run(_shown, services, checkpoint_id, page)).response()


def _shown(services: Services, checkpoint_id: str, page: range) -> LongDocument:
    return _document(services.checkpoints.get(checkpoint_id), page=page)


@router.delete(
    "/{checkpoint_id}",
    status_code=204,
    summary="Delete a checkpoint",
    responses=problem_responses(
        ProblemKind.CHECKPOINT_NOT_FOUND,
        ProblemKind.CHECKPOINT_IN_USE,
        ProblemKind.PRECONDITION_FAILED,
        ProblemKind.STORE_UNAVAILABLE,
        ProblemKind.FILES_LOCKED,
    ),
)
def delete_checkpoint(services: ServicesDep, checkpoint_id: CheckpointId, if_match: IfMatch = None) -> None:
    """Delete all its files, unless a job needs them."""
    check_checkpoint_matches(services, checkpoint_id, if_match)
    deletion.delete_checkpoint(services, checkpoint_id)


def _document(
    stored: StoredCheckpoint, *, told: tuple[str, ...] = (), page: range = FIRST_PAGE
) -> LongDocument:
    """Write the document in this thread; `told` are warnings about the request itself."""
    warnings = (*told, *stored.warnings)
    return LongDocument(
        checkpoint_text(stored.id, stored.files, stored.missing, stored, warnings=warnings, page=page)
    )
