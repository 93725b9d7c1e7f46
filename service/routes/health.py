"""Whether the service lives, whether it can work, and its numbers."""

import tempfile

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.responses import RedirectResponse, Response

from schemas.base import Output
from schemas.problem import FieldProblem
from service import errors
from service.dependencies import Services, ServicesDep
from service.openapi import refusals
from state.errors import StoreUnavailable


def missing_parts(services: Services) -> tuple[FieldProblem, ...]:
    """Name each part that is missing, with what to do about it."""
    return (*_store(services), *_disk(services))


def _store(services: Services) -> list[FieldProblem]:
    try:
        services.queue.ping()
        alive = services.workers.alive()
    except StoreUnavailable as error:
        return [FieldProblem(pointer="/redis", detail=str(error))]
    return [] if alive else [FieldProblem(pointer="/workers", detail="No worker is alive; start one.")]


def _disk(services: Services) -> list[FieldProblem]:
    try:
        services.space.require(0)
        with tempfile.TemporaryFile(dir=services.settings.data_dir) as file:
            file.write(b"ready?")
    except errors.OutOfSpace:
        least = services.settings.min_free_bytes
        detail = f"Less than {least} bytes are free; make room, or set ECKART_MIN_FREE_BYTES to less."
        return [FieldProblem(pointer="/disk", detail=detail)]
    except OSError as error:
        return [
            FieldProblem(pointer="/disk", detail=f"The data directory is not writable: {error.strerror}.")
        ]
    return []


router = APIRouter(tags=["health"])


class HealthDocument(Output):
    """That all is well."""

    status: str = Field(description="`ok`.", examples=["ok"])


OK = HealthDocument(status="ok")


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Say that the process answers; touches nothing", responses=refusals())
async def livez() -> HealthDocument:
    """Answer as long as the process does."""
    return OK


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Say whether jobs can be taken and done", responses=refusals(errors.NotReady))
def readyz(services: ServicesDep) -> HealthDocument:
    """Name what is missing: Redis, room on the disk, a worker."""
    if missing := missing_parts(services):
        names = ", ".join(part.pointer.removeprefix("/") for part in missing)
        raise errors.NotReady(f"Missing: {names}. See errors for each.", errors=missing)
    return OK


@router.get(
    "/metrics",
    summary="Give the numbers that Prometheus collects",
    response_class=Response,
    responses=refusals() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(services: ServicesDep) -> Response:
    """Collect them now."""
    return Response(services.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def home() -> RedirectResponse:
    """Lead to the documentation until there is a page."""
    return RedirectResponse("/docs")
