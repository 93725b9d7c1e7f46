"""What routes stand on: made once in the lifespan, found through typed dependencies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypedDict, TypeVar

from fastapi import Depends
from redis import Redis
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from service.bodytypes import require_json
from service.metrics import Metrics
from service.settings import Settings
from service.uploads import Sink, Space, body_chunks, declared_bytes, receive_body
from state.checkpoints import CheckpointStore
from state.jobs import JobStore
from state.queue import JobQueue
from state.workers import WorkerRegistry

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the API works with."""

    settings: Settings
    redis: Redis
    space: Space
    checkpoints: CheckpointStore
    jobs: JobStore
    queue: JobQueue
    workers: WorkerRegistry
    metrics: Metrics


class State(TypedDict):
    """What the lifespan leaves for requests."""

    services: Services


def _services(request: Request) -> Services:
    services: Services = request.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


class Body:
    """The body of one request, within the limits."""

    def __init__(self, request: Request, services: ServicesDep) -> None:
        self.request = request
        self._services = services

    async def announced_bytes(self) -> int | None:
        """Check what the head says of an upload, and the room for it, before any of it is read."""
        nbytes = declared_bytes(self.request, limit_bytes=self._services.settings.max_upload_bytes)
        await run_in_threadpool(self._services.space.require, nbytes or 0)
        return nbytes

    async def stream(self, begin: Callable[[], Sink[T]]) -> T:
        """Stream it into a sink."""
        settings = self._services.settings
        return await receive_body(
            self.request,
            begin,
            limit_bytes=settings.max_upload_bytes,
            idle_timeout_s=settings.idle_timeout_s,
            count=self._services.metrics.upload_bytes.inc,
        )

    async def json_text(self) -> bytes:
        """Read all of a small one that is called JSON."""
        require_json(self.request)
        settings = self._services.settings
        declared_bytes(self.request, limit_bytes=settings.max_spec_bytes)
        chunks = body_chunks(
            self.request, limit_bytes=settings.max_spec_bytes, idle_timeout_s=settings.idle_timeout_s
        )
        return b"".join([chunk async for chunk in chunks])


BodyDep = Annotated[Body, Depends()]
