"""What routes stand on: made once in the lifespan, found through typed dependencies."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Annotated, TypedDict, TypeVar

from fastapi import Depends
from redis import Redis
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from service.bodytypes import require_json
from service.metrics import Metrics
from service.settings import Settings
from service.uploads import Body, Sink, Space, declared_bytes, receive_body
from state.cache import DecompositionStore
from state.checkpoints import CheckpointStore
from state.jobs import JobStore
from state.queue import JobQueue
from state.scripts import WorkerRegistry

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the API works with."""

    settings: Settings
    redis: Redis
    space: Space
    checkpoints: CheckpointStore
    decompositions: DecompositionStore
    jobs: JobStore
    queue: JobQueue
    workers: WorkerRegistry
    metrics: Metrics
    stopping: Event


class State(TypedDict):
    """What the lifespan leaves for requests."""

    services: Services


def _services(request: Request) -> Services:
    services: Services = request.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


class Incoming:
    """The body of one request, within this service's limits."""

    def __init__(self, request: Request, services: ServicesDep) -> None:
        self.request = request
        self._services = services

    async def announced_bytes(self) -> int | None:
        """Check what the head says of an upload, and the room for it, before any of it is read."""
        nbytes = declared_bytes(self.request, limit_bytes=self._services.settings.max_upload_bytes)
        await run_in_threadpool(self._services.space.require, nbytes or 0)
        return nbytes

    def check_head(self, *, limit_bytes: int) -> None:
        """Check what the head says of a body that is kept in memory."""
        declared_bytes(self.request, limit_bytes=limit_bytes)

    async def stream(self, begin: Callable[[], Sink[T]], *, limit_bytes: int | None = None) -> T:
        """Stream it into a sink."""
        body = self._body(limit_bytes=limit_bytes or self._services.settings.max_upload_bytes)
        return await receive_body(body, begin, count=self._services.metrics.upload_bytes.inc)

    async def json_text(self) -> bytes:
        """Read all of a small one that is called JSON."""
        require_json(self.request)
        limit_bytes = self._services.settings.max_spec_bytes
        declared_bytes(self.request, limit_bytes=limit_bytes)
        return await self._body(limit_bytes=limit_bytes).whole()

    def _body(self, *, limit_bytes: int) -> Body:
        return Body(
            self.request, limit_bytes=limit_bytes, idle_timeout_s=self._services.settings.idle_timeout_s
        )


IncomingDep = Annotated[Incoming, Depends()]
