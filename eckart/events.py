"""A job's changes as the service tells them: server-sent events, followed across broken connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from eckart.download import job_path
from eckart.errors import AnswerError, EckartError, TransferError
from eckart.http import Call, parse_document
from eckart.types import Document, Job, JobEvent, JobProgress

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    import httpx

    from eckart.http import AsyncConnection, Connection

D = TypeVar("D", bound=Document)

MEDIA_TYPE = "text/event-stream"
MOST_LINE_BYTES = 64 << 20


def follow(connection: Connection, job_id: str, *, patience_s: float) -> Iterator[JobEvent]:
    """Yield the events of a job until its end, and none twice, however often the connection breaks.

    The error is raised if it does not come back for `patience_s`.
    """
    backoff = connection.backoff(patience_s)
    reader = EventReader(job_id)
    while True:
        try:
            with connection.stream(reader.call()) as response:
                reader.begin(response)
                for chunk in response.iter_bytes():
                    for event in reader.feed(chunk):
                        backoff.reset()
                        yield event
                        if event.kind == "end":
                            return
            raise reader.broken_off()
        except EckartError as error:
            connection.pause_or_raise(error, backoff)


async def follow_async(
    connection: AsyncConnection, job_id: str, *, patience_s: float
) -> AsyncGenerator[JobEvent, None]:
    """Do the same without blocking."""
    backoff = connection.backoff(patience_s)
    reader = EventReader(job_id)
    while True:
        try:
            async with connection.stream(reader.call()) as response:
                reader.begin(response)
                async for chunk in response.aiter_bytes():
                    for event in reader.feed(chunk):
                        backoff.reset()
                        yield event
                        if event.kind == "end":
                            return
            raise reader.broken_off()
        except EckartError as error:
            await asyncio.sleep(connection.pause_s(error, backoff))


class EventReader:
    """The events of a job, from the bytes of one stream after the other."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._last: str | None = None
        self._status = 200
        self._rest = b""
        self._fields: dict[str, str] = {}

    def call(self) -> Call:
        """Ask for what came after the last event."""
        headers = {"Accept": MEDIA_TYPE} | ({} if self._last is None else {"Last-Event-ID": self._last})
        return Call("GET", f"{job_path(self._job_id)}/events", headers=headers)

    def begin(self, response: httpx.Response) -> None:
        """Begin with the bytes of a new stream."""
        self._rest, self._fields, self._status = b"", {}, response.status_code
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != MEDIA_TYPE:
            raise self._bad(
                f"{response.request.url} is answered with {kind or 'nothing'} and not with events"
            )

    def feed(self, chunk: bytes) -> Iterator[JobEvent]:
        """Yield the events that are complete."""
        # At line feeds alone: `str.splitlines` would also split at U+2028, which JSON may hold.
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            fields = self._block(line.removesuffix(b"\r").decode(errors="replace"))
            if fields is not None and (event := _event(fields)) is not None:
                self._last = event.id
                yield event
        if len(self._rest) > MOST_LINE_BYTES:
            raise self._bad("an event is too long")

    def broken_off(self) -> TransferError:
        """Make the error of a stream that ends early: the service stops, or a proxy has closed it."""
        return TransferError(f"the event stream of job {self._job_id} broke off before its end")

    def _block(self, line: str) -> dict[str, str] | None:
        """Take a line; return the fields of a block that it ends."""
        if not line:
            fields, self._fields = self._fields, {}
            return fields
        name, _, value = line.partition(":")
        if name:
            value = value.removeprefix(" ")
            is_more = name == "data" and name in self._fields
            self._fields[name] = f"{self._fields[name]}\n{value}" if is_more else value
        return None

    def _bad(self, what: str) -> AnswerError:
        return AnswerError(what, status=self._status, retry_after_s=None)


def _event(fields: dict[str, str]) -> JobEvent | None:
    """Read an event; None for a comment, or a kind that only a newer release knows."""
    kind, data = fields.get("event", ""), fields.get("data", "")
    document: dict[str, Any] = {"kind": kind, "id": fields.get("id", "")}
    if kind == "progress":
        return JobEvent(**document, progress=_parse(JobProgress, data))
    if kind in {"state", "end"}:
        job = _parse(Job, data)
        return JobEvent(**document, job=job, progress=job.progress)
    return None


def _parse(kind: type[D], data: str) -> D:
    return parse_document(kind, data, what="an event", status=200)
