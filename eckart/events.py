"""A job's changes as the service tells them: server-sent events, followed across broken connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from eckart.download import job_path
from eckart.errors import AnswerError, EckartError, TransferError
from eckart.http import Backoff, Call, Connection
from eckart.types import Document, Job, JobEvent, JobProgress

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

D = TypeVar("D", bound=Document)

MEDIA_TYPE = "text/event-stream"
MOST_LINE_BYTES = 64 << 20


def follow(connection: Connection, job_id: str, *, patience_s: float) -> Iterator[JobEvent]:
    """Yield the events of a job until its end, and none twice, however often the connection breaks.

    The error is raised if it does not come back for `patience_s`.
    """
    backoff = Backoff(patience_s)
    last: str | None = None
    while True:
        try:
            for event in _stream(connection, job_id, last):
                backoff.reset()
                last = event.id
                yield event
                if event.kind == "end":
                    return
            # The service stops, or a proxy has closed the connection.
            raise TransferError(f"the event stream of job {job_id} broke off before its end")
        except EckartError as error:
            connection.pause_or_raise(error, backoff)


def _stream(connection: Connection, job_id: str, last: str | None) -> Iterator[JobEvent]:
    headers = {"Accept": MEDIA_TYPE} | ({} if last is None else {"Last-Event-ID": last})
    with connection.stream(Call("GET", f"{job_path(job_id)}/events", headers=headers)) as response:
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != MEDIA_TYPE:
            raise AnswerError(
                f"{response.request.url} is answered with {kind or 'nothing'} and not with events",
                status=response.status_code,
                retry_after_s=None,
            )
        for fields in _blocks(response):
            if (event := _event(fields)) is not None:
                yield event


def _blocks(response: httpx.Response) -> Iterator[dict[str, str]]:
    """Yield the fields of each block; `str.splitlines` would also split at U+2028, which JSON may hold."""
    fields: dict[str, str] = {}
    for line in _lines(response):
        name, _, value = line.partition(":")
        if not line:
            yield fields
            fields = {}
        elif name:
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value


def _lines(response: httpx.Response) -> Iterator[str]:
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.removesuffix(b"\r").decode(errors="replace") for line in lines)
        if len(rest) > MOST_LINE_BYTES:
            raise AnswerError("an event is too long", status=response.status_code, retry_after_s=None)


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
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise AnswerError(
            f"an event is no {kind.__name__} that this version of eckart understands; upgrade the older of "
            "the two sides",
            status=200,
            retry_after_s=None,
        ) from error
