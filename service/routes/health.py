"""Whether the service lives, whether it can work, and its numbers."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.responses import RedirectResponse, Response

from schemas.base import Output
from service import errors
from service.deps import ServicesDep
from service.openapi import refusals
from service.readiness import missing_parts

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
