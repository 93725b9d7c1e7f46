"""A job's changes as server-sent events.

An event tells how the job is now, not what happened: what changes twice between two looks is told once. The
id of an event says all that its receiver knows, so that a stream goes on where another one broke off.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from schemas.job import TERMINAL
from service.jobs.status import single_document
from service.jobs.watch import JobWatches
from state.jobs.records import JobView

QUIET_S = 15.0
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True)
class Known:
    """What a listener knows of a job: the version of its record and its place, its progress, and its end."""

    record: str = ""
    progress: str = ""
    end: str = ""

    @classmethod
    def from_id(cls, event_id: str | None) -> "Known":
        """Parse the id of an event; of anything else nothing is known."""
        parts = (event_id or "").split(":")
        return cls(*parts) if len(parts) == 3 else cls()

    @property
    def id(self) -> str:
        return f"{self.record}:{self.progress}:{self.end}"


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens, and whether the key of the request still opens anything."""

    owner: str
    is_known: Callable[[], bool]


def events(view: JobView, known: Known, root_path: str) -> Iterator[tuple[Known, bytes]]:
    """Yield the events that a listener lacks, each with what is known after it."""
    place = "" if view.queue_position is None else view.queue_position
    record = f"{view.record.version}-{place}"
    progress = view.progress.model_dump_json()
    digest = hashlib.sha256(progress.encode()).hexdigest()[:12]
    ended = view.record.state in TERMINAL
    job = "" if record == known.record and not ended else single_document(view, root_path).model_dump_json()
    if record != known.record:
        known = Known(record, digest)
        yield known, _event("state", job, known)
    elif digest != known.progress and not ended:
        known = Known(record, digest)
        yield known, _event("progress", progress, known)
    if ended and not known.end:
        known = replace(known, end="end")
        yield known, _event("end", job, known)


def _event(name: str, data: str, known: Known) -> bytes:
    return format_sse_event(event=name, data_str=data, id=known.id)


class EventStream(StreamingResponse):
    """The events of a job until it ends; a comment where nothing happens, so that no proxy gives up."""

    media_type = "text/event-stream"

    def __init__(
        self, watches: JobWatches, job_id: str, known: Known, root_path: str, *, listener: Listener
    ) -> None:
        super().__init__(_stream(watches, job_id, known, root_path, listener.is_known), headers=HEADERS)
        self._watches = watches
        self._owner = listener.owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them, or refuse if too many listen."""
        with self._watches.stream_place(self._owner):
            await super().__call__(scope, receive, send)


async def _stream(
    watches: JobWatches, job_id: str, first: Known, root_path: str, is_known: Callable[[], bool]
) -> AsyncIterator[bytes]:
    known = first
    async for view in watches.follow(job_id, quiet_s=QUIET_S):
        if not is_known():
            return
        if view is None:
            yield KEEPALIVE_COMMENT
            continue
        for after, event in events(view, known, root_path):
            known = after
            yield event
