"""HTTP with one service: requests, retries with back-off, and digests."""

from __future__ import annotations

import asyncio
import base64
import binascii
import email.utils
import re
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from pydantic import ValidationError

from eckart.errors import (
    AnswerError,
    DigestError,
    EckartError,
    InputError,
    ProblemError,
    ServiceError,
    TransferError,
    UnreachableError,
    translate_errors,
)
from eckart.types import Document, Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

D = TypeVar("D", bound=Document)

# A proxy for the outside world cannot reach a service on this machine.
LOCAL = ("all://localhost", "all://127.0.0.1", "all://[::1]")
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
KEY = re.compile(r"[\x21-\x7e]*")
SHA256_FIELD = re.compile(r"(?:^|[,\s])sha-256=:([A-Za-z0-9+/]{43}=):")


@dataclass(frozen=True, slots=True)
class Call:
    """One request; `content` makes its body again for each try, `form` and `files` make a multipart one."""

    method: str
    path: str
    params: Mapping[str, str | int] | None = None
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    content: Callable[[], Iterator[bytes]] | None = None
    form: Mapping[str, str] | None = None
    files: Sequence[tuple[str, tuple[str, bytes]]] | None = None  # field, file name and bytes of each part
    answer_s: float = 0.0  # how long the answer may take beyond the usual


class Backoff:
    """Growing pauses between tries, up to a limit of time."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.reset()

    def reset(self) -> None:
        """Start again with the shortest pause and the whole time, because something got through."""
        self._pause_s = FIRST_PAUSE_S
        self._ends_at = time.monotonic() + self._limit_s

    def next_s(self, error: EckartError, *, asked_s: float | None = None) -> float:
        """Return how long to pause: as the service asked, or ever longer; raise when the time is over."""
        pause_s = self._pause_s if asked_s is None else asked_s
        if time.monotonic() + pause_s > self._ends_at:
            raise error
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s


class Sender:
    """What both connections know: how a request is built, and when another try may help."""

    def __init__(self, base_url: str, *, timeout_s: float, patience_s: float) -> None:
        self.base_url = base_url
        self.patience_s = patience_s
        self._timeout_s = timeout_s
        self._answered = False

    def backoff(self, patience_s: float | None) -> Backoff:
        return Backoff(self.patience_s if patience_s is None else patience_s)

    def pause_s(self, error: EckartError, backoff: Backoff) -> float:
        """Return how long to wait before another try; raise the error where none may help."""
        if not self._may_pass(error):
            raise error
        return backoff.next_s(error, asked_s=error.retry_after_s if isinstance(error, ServiceError) else None)

    def _build(self, http: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
        return http.build_request(
            call.method,
            call.path,
            params=call.params,
            json=call.json,
            headers=call.headers,
            data=call.form,
            files=call.files,
            content=call.content() if call.content else None,
            timeout=httpx.Timeout(self._timeout_s, read=self._timeout_s + call.answer_s),
        )

    def _may_pass(self, error: EckartError) -> bool:
        if isinstance(error, ServiceError):
            return error.passing
        if isinstance(error, UnreachableError):
            return self._answered  # do not wait for a service that has never answered
        return isinstance(error, TransferError) and not isinstance(error, DigestError)


class Connection(Sender):
    """An httpx client that raises our errors and retries where a retry may help."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float,
        patience_s: float,
        transport: httpx.BaseTransport | None,
        api_key: str | None = None,
    ) -> None:
        super().__init__(base_url, timeout_s=timeout_s, patience_s=patience_s)
        with translate_errors(base_url):
            # An answer never sends us, and the key, to another host.
            self._http = httpx.Client(
                base_url=base_url,
                transport=transport,
                mounts=dict.fromkeys(LOCAL),
                headers=_headers(api_key),
                follow_redirects=False,
            )

    def close(self) -> None:
        self._http.close()

    def request(self, call: Call, *, patience_s: float | None = None) -> httpx.Response:
        """Send a request that is harmless twice until it is answered, and read the whole answer."""
        backoff = self.backoff(patience_s)
        while True:
            try:
                with self.stream(call) as response:
                    response.read()
                    return response
            except EckartError as error:
                self.pause_or_raise(error, backoff)

    def pause_or_raise(self, error: EckartError, backoff: Backoff) -> None:
        """Wait before another try if one may help."""
        time.sleep(self.pause_s(error, backoff))

    @contextmanager
    def stream(self, call: Call) -> Iterator[httpx.Response]:
        """Send a request once and give the answer with its body unread; raise if it is a refusal."""
        request = self._build(self._http, call)
        with translate_errors(self.base_url):
            response = self._http.send(request, stream=True)
            try:
                self._answered = True
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                yield response
            finally:
                response.close()


class AsyncConnection(Sender):
    """The same without blocking the event loop."""

    def __init__(self, base_url: str, *, timeout_s: float, patience_s: float, api_key: str | None) -> None:
        super().__init__(base_url, timeout_s=timeout_s, patience_s=patience_s)
        with translate_errors(base_url):
            self._http = httpx.AsyncClient(
                base_url=base_url,
                mounts=dict.fromkeys(LOCAL),
                headers=_headers(api_key),
                follow_redirects=False,
            )

    async def close(self) -> None:
        await self._http.aclose()

    async def request(self, call: Call, *, patience_s: float | None = None) -> httpx.Response:
        backoff = self.backoff(patience_s)
        while True:
            try:
                async with self.stream(call) as response:
                    await response.aread()
                    return response
            except EckartError as error:
                await asyncio.sleep(self.pause_s(error, backoff))

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[httpx.Response]:
        request = self._build(self._http, call)
        with translate_errors(self.base_url):
            response = await self._http.send(request, stream=True)
            try:
                self._answered = True
                if not response.is_success:
                    await response.aread()
                    raise refusal(response)
                yield response
            finally:
                await response.aclose()


def refusal(response: httpx.Response) -> ServiceError:
    """Make the error for an answer with a bad status; quote it where it is no problem document."""
    pause_s = retry_after_s(response.headers.get("Retry-After"))
    try:
        return ProblemError(Problem.model_validate_json(response.content), retry_after_s=pause_s)
    except ValidationError:
        quoted = ascii(response.text[:200])[1:-1]
        return AnswerError(
            f"{response.request.method} {response.request.url} was answered with "
            f"{response.status_code} {response.reason_phrase}: {_without_key(quoted, response.request)}",
            status=response.status_code,
            retry_after_s=pause_s,
        )


def _headers(api_key: str | None) -> dict[str, str]:
    """Return the headers of all requests; refuse a key that no header can carry, without showing it."""
    key = (api_key or "").strip()
    if KEY.fullmatch(key) is None:
        raise InputError("the API key holds characters other than printable ASCII, or spaces")
    authorization = {"Authorization": f"Bearer {key}"} if key else {}
    return {"Accept-Encoding": "identity", **authorization}


def _without_key(text: str, request: httpx.Request) -> str:
    """Take the key out of a foreign page that repeats the request."""
    key = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return text.replace(key, "…") if key else text


def parse(kind: type[D], response: httpx.Response) -> D:
    """Read a good answer as a document."""
    what = f"the answer to {response.request.method} {response.request.url}"
    return parse_document(kind, response.content, what=what, status=response.status_code)


def parse_document(kind: type[D], text: str | bytes, *, what: str, status: int) -> D:
    """Read a document that came in an answer of this status; the error says what it was in."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise AnswerError(
            f"{what} is no {kind.__name__} that this version of eckart understands "
            f"({first['msg']} at /{'/'.join(map(str, first['loc']))}); upgrade the older of the two sides",
            status=status,
            retry_after_s=None,
        ) from error


def retry_after_s(field: str | None) -> float | None:
    """Read a Retry-After field, seconds or a date; None where it is neither."""
    if field is None:
        return None
    if field.strip().isascii() and field.strip().isdigit():
        return float(field)
    try:
        at = email.utils.parsedate_to_datetime(field)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def repr_digest(sha256: str) -> str:
    """Write a hex digest as a Repr-Digest field (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def sha256_of(field: str | None) -> str | None:
    """Read the hex digest from a Repr-Digest field; None where it holds no sha-256."""
    found = SHA256_FIELD.search(field or "")
    try:
        return base64.b64decode(found[1], validate=True).hex() if found else None
    except binascii.Error:
        return None
