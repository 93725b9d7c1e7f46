"""What routes depend on: the services, the request's body, and parameters that several routes share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event
from typing import Annotated, Any, TypedDict, TypeVar

from fastapi import Depends, Header, Path, Query
from redis import Redis
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from schemas.format.names import CHECKPOINT_ID
from schemas.job import JobState
from service.access.keys import WITHOUT_KEYS
from service.access.links import LinkSigner
from service.access.quotas import Quotas, too_many_bytes
from service.jobs.watch import JobWatches
from service.json_body import require_json
from service.maintenance.turns import Turns
from service.metrics import Metrics
from service.planning.pool import PlanningPool
from service.settings import Settings
from service.uploads.streaming import (
    BodyStream,
    DiskSpace,
    Sink,
    UploadSlots,
    check_declared_size,
    receive_body,
)
from service.webhooks.hosts import WebhookHosts
from service.webhooks.secrets import WebhookSecrets
from state.cache.store import DecompositionCache
from state.checkpoints.store import CheckpointStore
from state.jobs.queue import JobQueue
from state.jobs.store import JobStore
from state.uploads.resumable import ResumableUploads
from state.workers import WorkerRegistry

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the API works with; made once, by `service.app`.

    What a request gets is its owner's: `checkpoints`, `jobs` and `decompositions` of others do not exist.
    """

    settings: Settings
    redis: Redis
    space: DiskSpace
    checkpoints: CheckpointStore
    resumable: ResumableUploads
    decompositions: DecompositionCache
    jobs: JobStore
    queue: JobQueue
    workers: WorkerRegistry
    metrics: Metrics
    planning: PlanningPool
    uploads: UploadSlots
    quotas: Quotas
    watches: JobWatches
    webhook_hosts: WebhookHosts
    webhook_secrets: WebhookSecrets | None
    links: LinkSigner
    stopping: Event
    turns: Turns
    owner: str = WITHOUT_KEYS

    def of(self, owner: str) -> "Services":
        """Return the services for the requests of one owner."""
        return replace(
            self,
            owner=owner,
            checkpoints=self.checkpoints.of(owner),
            resumable=self.resumable.of(owner),
            jobs=self.jobs.of(owner),
            decompositions=self.decompositions.of(owner),
        )

    def close(self) -> None:
        """Close what was opened."""
        self.planning.close()
        self.queue.close()
        self.redis.close()

    def left_bytes(self, needed: int | None = None) -> int | None:
        """Return how many bytes more the owner may store, who needs so many; None: any number."""
        return self.quotas.left_bytes(self.owner, self._stored_bytes, needed=needed)

    def _stored_bytes(self) -> int:
        """Return the bytes of all that the owner has stored, or has begun to."""
        return self.checkpoints.stored_bytes() + self.resumable.received_bytes() + self.jobs.result_bytes()


class LifespanState(TypedDict):
    """What the lifespan hands to each request, as `request.state`."""

    services: Services


def _services(request: Request) -> Services:
    services: Services = request.state.services
    return services.of(request.state.owner)


ServicesDep = Annotated[Services, Depends(_services)]


def _root_path(request: Request) -> str:
    root_path: str = request.scope.get("root_path", "")
    return root_path


RootPath = Annotated[str, Depends(_root_path)]


class RequestBody:
    """The body of one request, within the limits of this service."""

    def __init__(self, request: Request, services: ServicesDep) -> None:
        self.request = request
        self._services = services

    async def check_upload(self, *, limit_bytes: int | None = None) -> int | None:
        """Check an upload's headers, and the disk space for it, before its body is read.

        Returns its size where Content-Length gives it.
        """
        nbytes = check_declared_size(self.request, limit_bytes=self._limit_bytes(limit_bytes))
        await self.require_room(nbytes)
        return nbytes

    async def require_room(self, nbytes: int | None) -> None:
        """Check that the owner may store so many bytes more, if these are known, and that there is space."""
        await run_in_threadpool(self._require_quota, nbytes)
        await run_in_threadpool(self._services.space.require, nbytes or 0)

    async def store(
        self, begin: Callable[[], Sink[T]], *, limit_bytes: int | None = None, kept: bool = False
    ) -> T:
        """Stream an upload into a sink that writes to the disk; `kept`: also what arrives of a broken one."""
        body = self._open(limit_bytes=self._limit_bytes(limit_bytes), space=self._services.space)
        uploading = self._services.quotas.uploading(self._services.owner, kept=kept)
        with self._services.uploads.one(), uploading as count_for_quota:

            def count(nbytes: int) -> None:
                self._services.metrics.upload_bytes.inc(nbytes)
                count_for_quota(nbytes)

            return await receive_body(body, begin, count=count)

    def _limit_bytes(self, limit_bytes: int | None) -> int:
        return self._services.settings.max_upload_bytes if limit_bytes is None else limit_bytes

    def _require_quota(self, nbytes: int | None) -> None:
        left_bytes = self._services.left_bytes(nbytes)
        if left_bytes is not None and max(nbytes or 0, 1) > left_bytes:
            assert self._services.settings.owner_bytes is not None
            raise too_many_bytes(self._services.settings.owner_bytes)

    async def collect(self, begin: Callable[[], Sink[T]], *, limit_bytes: int) -> T:
        """Check a body's headers and stream it into a sink that keeps it in memory."""
        check_declared_size(self.request, limit_bytes=limit_bytes)
        with self._services.uploads.one():
            body = self._open(limit_bytes=limit_bytes, space=None)
            return await receive_body(body, begin, count=self._services.metrics.upload_bytes.inc)

    async def json_text(self) -> bytes:
        """Read the whole of a JSON body."""
        require_json(self.request)
        limit_bytes = self._services.settings.max_spec_bytes
        check_declared_size(self.request, limit_bytes=limit_bytes)
        return await self._open(limit_bytes=limit_bytes, space=None).whole()

    def _open(self, *, limit_bytes: int, space: DiskSpace | None) -> BodyStream:
        settings = self._services.settings
        return BodyStream(
            self.request,
            limit_bytes=limit_bytes,
            idle_timeout_s=settings.idle_timeout_s,
            least_bytes_per_s=settings.min_upload_bytes_per_s,
            space=space,
        )


RequestBodyDep = Annotated[RequestBody, Depends()]

CheckpointId = Annotated[str, Path(description="The checkpoint's id.", examples=["my-model"])]
NewCheckpointId = Annotated[
    str,
    Path(
        pattern=CHECKPOINT_ID.pattern,
        description="The checkpoint's id; you choose it.",
        examples=["my-model"],
    ),
]
JobId = Annotated[str, Path(description="The job's id.", examples=["J5b0"])]
UploadId = Annotated[str, Path(description="The upload's id.", examples=["U3f0c"])]
FileName = Annotated[
    str, Path(max_length=128, description="The file's name.", examples=["model.safetensors"])
]
ResultName = Annotated[str, Path(description="The file's name.", examples=["model.safetensors"])]
IfNoneMatch = Annotated[
    str | None,
    Header(
        description="An ETag from an earlier answer: 304 if nothing has changed.",
        examples=['"9f86d081884c7d65"'],
    ),
]
IfMatch = Annotated[
    str | None,
    Header(
        description="The ETag that must still be right, or `*` for any; else 412 and nothing is deleted.",
        examples=['"9f86d081884c7d65"'],
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="Repeat a request under the same key to get the first job instead of a second one.",
        examples=["3f0c1d6e-2f5b-4c1e-9f64-8f3a1f7f0a11"],
    ),
]


LastEventId = Annotated[
    str | None,
    Header(
        max_length=256,
        description="The `id` of the last event that came: the stream goes on after it.",
        examples=["3-:5feceb66ffc8:"],
    ),
]


def _wait_query(until: str) -> Any:
    description = (
        f"Hold the answer until {until}, for at most this many seconds, and never for longer than the "
        "service allows: 50 s, unless it is set up otherwise."
    )
    return Query(ge=0, allow_inf_nan=False, description=description, examples=[30])


Wait = Annotated[float, _wait_query("the state changes")]
WaitForEnd = Annotated[float, _wait_query("the job has ended")]
StateFilter = Annotated[
    JobState | None, Query(description="Only jobs in this state.", examples=["succeeded"])
]
CheckpointFilter = Annotated[
    str | None,
    Query(pattern=CHECKPOINT_ID.pattern, description="Only jobs on this checkpoint.", examples=["my-model"]),
]
Limit = Annotated[
    int, Query(ge=1, le=200, description="The largest number of entries on the page.", examples=[50])
]
TensorLimit = Annotated[
    int, Query(ge=1, le=10_000, description="The largest number of tensors on the page.", examples=[1000])
]
TensorCursor = Annotated[
    str | None,
    Query(pattern="^[0-9]{1,9}$", description="`next_cursor` of the previous page.", examples=["1000"]),
]
CheckpointCursor = Annotated[
    str | None,
    Query(
        pattern="^[0-9]{1,16}-" + CHECKPOINT_ID.pattern.removeprefix("^"),
        description="`next_cursor` of the previous page.",
        examples=["1767323045000000-my-model"],
    ),
]
JobCursor = Annotated[
    str | None,
    Query(
        pattern="^[0-9]{1,16}$",
        description="`next_cursor` of the previous page.",
        examples=["1767323045000000"],
    ),
]
