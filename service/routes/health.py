"""Liveness, readiness and metrics."""

import tempfile

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.responses import Response

from schemas.base import Output
from schemas.problem import FieldProblem, ProblemKind
from service.dependencies import Services, ServicesDep
from service.errors import ProblemError
from service.maintenance.turns import SWEEP
from service.openapi import problem_responses
from state.errors import OutOfSpace, RedisUnavailable
from state.mounts import lock_warning
from state.redis import eviction_warning

router = APIRouter(tags=["health"])


class HealthDocument(Output):
    """The answer of a successful health check."""

    status: str = Field(description="`ok`.", examples=["ok"])


class ReadyDocument(HealthDocument):
    """The answer of a service that is ready."""

    warnings: tuple[str, ...] = Field(
        description="What works for now, but should be changed.",
        examples=[["Redis is set to evict keys when its memory is full (maxmemory-policy allkeys-lru), …"]],
    )


OK = HealthDocument(status="ok")


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Liveness: the process answers", responses=problem_responses())
async def livez() -> HealthDocument:
    """Answer without touching the disk or Redis."""
    return OK


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="Readiness: jobs can be accepted and done",
    responses=problem_responses(ProblemKind.NOT_READY),
)
def readyz(services: ServicesDep) -> ReadyDocument:
    """Check Redis, its records, the workers, the disk and the reaper, and list what is missing."""
    if missing := _missing(services):
        names = ", ".join(part.pointer.removeprefix("/") for part in missing)
        raise ProblemError(ProblemKind.NOT_READY, values={"missing": names}, errors=missing)
    found = (eviction_warning(services.redis), lock_warning(services.settings.data_dir))
    return ReadyDocument(status="ok", warnings=tuple(warning for warning in found if warning))


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses=problem_responses() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(services: ServicesDep) -> Response:
    """Read all metrics."""
    return Response(services.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _missing(services: Services) -> tuple[FieldProblem, ...]:
    """List what is missing before jobs can be accepted and done, with what to do about it."""
    missing = (*_redis(services), *_disk(services))
    # Without Redis nothing can be swept.
    without_redis = any(part.pointer == "/redis" for part in missing)
    return missing if without_redis else (*missing, *_reaper(services))


def _reaper(services: Services) -> list[FieldProblem]:
    if not services.turns.is_late(SWEEP):
        return []
    age_s = services.turns.ages_s()[SWEEP]
    detail = (
        f"Lost jobs have not been looked for in the last {age_s:.0f} s. See the log; if it does not end, "
        "look at the disk and at Redis, and restart the API."
    )
    return [FieldProblem(pointer="/reaper", detail=detail)]


def _redis(services: Services) -> list[FieldProblem]:
    try:
        services.queue.ping()
        alive = services.workers.alive()
        restored = services.jobs.restoring()
    except RedisUnavailable as error:
        return [FieldProblem(pointer="/redis", detail=str(error))]
    missing = []
    if restored is not None:
        detail = (
            "Redis was restarted or lost its data. The records of the jobs are being put back from the disk, "
            f"{restored} so far; wait."
        )
        missing.append(FieldProblem(pointer="/jobs", detail=detail))
    if not alive:
        missing.append(FieldProblem(pointer="/workers", detail="No worker is alive; start one."))
    return missing


def _disk(services: Services) -> list[FieldProblem]:
    try:
        services.space.require(0)
        with tempfile.TemporaryFile(dir=services.settings.data_dir) as file:
            file.write(b"ready?")
    except OutOfSpace:
        least = services.settings.min_free_bytes
        detail = f"Fewer than {least} bytes are free; free some, or set ECKART_MIN_FREE_BYTES to less."
        return [FieldProblem(pointer="/disk", detail=detail)]
    except OSError as error:
        return [
            FieldProblem(pointer="/disk", detail=f"The data directory is not writable: {error.strerror}.")
        ]
    return []
