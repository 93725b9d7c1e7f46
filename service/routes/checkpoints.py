"""Stored checkpoints: upload, look, delete."""

from functools import partial

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from schemas.checkpoint import Checkpoint, FileInfo
from schemas.format.metadata import factored_names
from schemas.planning.documents import checkpoint_document
from service import errors, submission
from service.dependencies import CheckpointId, FileName, IncomingDep, NewCheckpointId, ReprDigest, ServicesDep
from service.forms import begin_file, begin_form
from service.headers import digest_headers, wanted_sha256
from service.multipart import boundary_of
from service.openapi import FILES_BODY, RAW_BODY, answers, refusals
from state.checkpoints import StoredCheckpoint

router = APIRouter(prefix="/v1/checkpoints", tags=["checkpoints"])

UPLOAD_REFUSALS = (
    errors.RequestTimeout,
    errors.ContentConflict,
    errors.TooLarge,
    errors.EncodedBody,
    errors.InvalidRequest,
    errors.InvalidCheckpoint,
    errors.PartialBody,
    errors.OutOfSpace,
)


@router.put(
    "/{checkpoint_id}/{filename}",
    status_code=201,
    summary="Store one file of a checkpoint",
    response_model=FileInfo,
    responses=refusals(*UPLOAD_REFUSALS, errors.DigestMismatch)
    | {
        200: {"model": FileInfo, **answers("ETag", "Repr-Digest", description="The same bytes again.")},
        201: answers("ETag", "Repr-Digest", description="Stored."),
    },
    openapi_extra=RAW_BODY,
)
async def put_file(
    body: IncomingDep,
    services: ServicesDep,
    checkpoint_id: NewCheckpointId,
    filename: FileName,
    repr_digest: ReprDigest = None,
) -> Response:
    """Stream the body to disk; its header is checked as it comes in."""
    expected = wanted_sha256(repr_digest)
    nbytes = await body.announced_bytes()
    begin = partial(begin_file, services, checkpoint_id, filename, content_bytes=nbytes, expected=expected)
    stored = await body.stream(begin)
    document = FileInfo(name=stored.name, size_bytes=stored.size_bytes, sha256=stored.sha256)
    return JSONResponse(
        document.model_dump(), 201 if stored.created else 200, headers=digest_headers(stored.sha256)
    )


@router.post(
    "/{checkpoint_id}",
    status_code=201,
    summary="Store several files of a checkpoint at once",
    response_model=Checkpoint,
    responses=refusals(*UPLOAD_REFUSALS, errors.UnsupportedMediaType, errors.InvalidMultipart)
    | {200: {"model": Checkpoint, "description": "The same bytes again."}},
    openapi_extra=FILES_BODY,
)
async def post_files(body: IncomingDep, services: ServicesDep, checkpoint_id: NewCheckpointId) -> Response:
    """Stream each part to disk; if one is refused, all are."""
    boundary = boundary_of(body.request)
    await body.announced_bytes()
    content = await body.stream(partial(begin_form, services, checkpoint_id, boundary, with_spec=False))
    stored = await run_in_threadpool(services.checkpoints.get, checkpoint_id)
    created = any(file.created for file in content.files)
    return JSONResponse(stored_document(stored).model_dump(mode="json"), 201 if created else 200)


@router.head("/{checkpoint_id}", include_in_schema=False)
@router.get(
    "/{checkpoint_id}",
    summary="List a checkpoint's files and tensors",
    responses=refusals(errors.CheckpointNotFound),
)
def get_checkpoint(services: ServicesDep, checkpoint_id: CheckpointId) -> Checkpoint:
    """Say what is stored, what is missing, and what would be factored."""
    return stored_document(services.checkpoints.get(checkpoint_id))


@router.delete(
    "/{checkpoint_id}",
    status_code=204,
    summary="Delete a checkpoint",
    responses=refusals(errors.CheckpointNotFound, errors.CheckpointInUse, errors.StoreUnavailable),
)
def delete_checkpoint(services: ServicesDep, checkpoint_id: CheckpointId) -> None:
    """Remove all its files, unless a job needs them."""
    submission.delete_checkpoint(services, checkpoint_id)


def stored_document(stored: StoredCheckpoint) -> Checkpoint:
    """Show a checkpoint with all its tensors."""
    factored = factored_names(header.metadata for header in stored.headers.values())
    return checkpoint_document(stored.id, stored.files, stored.missing, stored.tensors, factored=factored)
