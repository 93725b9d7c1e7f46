"""The client for asyncio: the same verbs, of which none blocks the event loop."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from eckart import verbs
from eckart.client import address_and_key
from eckart.conversation import Ask, Conversation, Pause, Step, Work, converse_async
from eckart.download import job_path
from eckart.errors import ServiceError, TransferError
from eckart.events import follow_async
from eckart.http import AsyncConnection, Call, Connection
from eckart.progress import silent
from eckart.types import (
    CheckpointList,
    Job,
    JobEvent,
    JobList,
    ListedCheckpoint,
    ListedJob,
    PlanDocument,
    Report,
)

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from eckart.checkpoint import PathOrId
    from eckart.progress import ProgressCallback
    from eckart.spec import Spec

T = TypeVar("T")


class AsyncClient:
    """A connection to a service; close it, or use it in an `async with` block.

    Its verbs take and return what those of `Client` do. Files are hashed, sent and written in threads.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        patience_s: float = 60.0,
    ) -> None:
        """Connect to a service that may be silent for `timeout_s` and unavailable for `patience_s`.

        What is not given is that of `ECKART_URL` and `ECKART_API_KEY`.
        """
        url, key = address_and_key(base_url, api_key)
        self._connection = AsyncConnection(url, api_key=key, timeout_s=timeout_s, patience_s=patience_s)
        # For work with files: a thread needs a connection of its own. No attribute shows the key.
        self._connect: Callable[[], Connection] = lambda: Connection(
            url, api_key=key, timeout_s=timeout_s, patience_s=patience_s, transport=None
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    async def _run(self, conversation: Conversation[T]) -> T:
        return await converse_async(conversation, self._do)

    async def _do(self, step: Step) -> Any:
        match step:
            case Ask(call, patience_s):
                return await self._connection.request(call, patience_s=patience_s)
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Work(function):
                connection = self._connect()
                try:
                    return await asyncio.to_thread(function, connection)
                finally:
                    # Where the task is canceled, this breaks off what the thread sends or receives.
                    connection.close()

    async def upload(
        self,
        path: str | os.PathLike[str],
        *,
        id: str | None = None,  # noqa: A002 - the word the service uses
        progress: ProgressCallback | None = None,
    ) -> str:
        return await self._run(verbs.store(path, id, _in_loop(progress or silent)))

    async def compress(
        self,
        path_or_id: PathOrId,
        spec: Spec,
        *,
        calibration: PathOrId | None = None,
        base: PathOrId | None = None,
        wait: bool = True,
        progress: ProgressCallback | None = None,
    ) -> Job:
        named = {"calibration": calibration, "base": base}
        job = await self._run(verbs.compress(path_or_id, spec, named, _in_loop(progress or silent)))
        return await self.wait(job.id, progress=progress) if wait else job

    async def compress_pipeline(
        self,
        folder: str | os.PathLike[str],
        spec: Spec,
        into: str | os.PathLike[str],
        *,
        components: Sequence[str] | None = None,
        progress: ProgressCallback | None = None,
    ) -> dict[str, Job]:
        patience_s = self._connection.patience_s
        said = None if progress is None else _in_loop(progress)
        with closing(verbs.compress_pipeline(folder, spec, into, components, patience_s, said)) as asked:
            return await self._run(asked)

    async def submit(self, checkpoint: str, spec: Spec) -> Job:
        return await self._run(verbs.submit(checkpoint, spec))

    async def wait(
        self, job_id: str, *, timeout_s: float | None = None, progress: ProgressCallback | None = None
    ) -> Job:
        if progress is not None and timeout_s is None:
            with suppress(ServiceError, TransferError):
                watch = verbs.Watch(progress)
                async for event in follow_async(self._connection, job_id, patience_s=0.0):
                    watch.take(event)
                return watch.ended()
        patience_s = self._connection.patience_s
        return await self._run(
            verbs.wait(job_id, timeout_s=timeout_s, patience_s=patience_s, progress=progress)
        )

    def events(self, job_id: str) -> AsyncGenerator[JobEvent, None]:
        return follow_async(self._connection, job_id, patience_s=self._connection.patience_s)

    async def job(self, job_id: str) -> Job:
        return await self._run(verbs.ask(Job, Call("GET", job_path(job_id))))

    async def jobs(
        self, *, state: str | None = None, checkpoint: str | None = None
    ) -> AsyncGenerator[ListedJob, None]:
        cursor: str | None = None
        while True:
            page = await self._run(
                verbs.page(JobList, "/v1/jobs", cursor, state=state, checkpoint=checkpoint)
            )
            for job in page.jobs:
                yield job
            if (cursor := page.next_cursor) is None:
                return

    async def checkpoints(self) -> AsyncGenerator[ListedCheckpoint, None]:
        cursor: str | None = None
        while True:
            page = await self._run(verbs.page(CheckpointList, "/v1/checkpoints", cursor))
            for checkpoint in page.checkpoints:
                yield checkpoint
            if (cursor := page.next_cursor) is None:
                return

    async def plan(
        self,
        path_or_id: PathOrId,
        spec: Spec,
        *,
        calibration: PathOrId | None = None,
        base: PathOrId | None = None,
    ) -> PlanDocument:
        return await self._run(verbs.plan(path_or_id, spec, {"calibration": calibration, "base": base}))

    async def report(self, job_id: str) -> Report:
        return await self._run(verbs.report(job_id))

    async def download(
        self,
        job_id: str,
        into: str | os.PathLike[str],
        *,
        source: str | os.PathLike[str] | None = None,
        progress: ProgressCallback | None = None,
    ) -> tuple[Path, ...]:
        return await self._run(verbs.fetch(job_id, into, source, _in_loop(progress or silent)))

    async def cancel(self, job_id: str) -> Job:
        return await self._run(verbs.change(job_id, "cancel"))

    async def resume(self, job_id: str) -> Job:
        return await self._run(verbs.change(job_id, "resume"))

    async def delete(self, job_id: str) -> None:
        await self._run(verbs.delete(job_id))

    async def delete_checkpoint(self, checkpoint_id: str) -> None:
        await self._run(verbs.delete_checkpoint(checkpoint_id))


def _in_loop(progress: ProgressCallback) -> ProgressCallback:
    """Call back in the event loop, whichever thread reports."""
    loop = asyncio.get_running_loop()

    def report(done: int, total: int, what: str, /) -> None:
        loop.call_soon_threadsafe(progress, done, total, what)

    return report
