"""Plain ASGI around the application: request ids, measurement, and bodies that nobody read."""

import asyncio
import contextlib
import logging
import re
import secrets
import time
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics

OUTSIDE = "-"

# A task, and the threads that work for it, see the id of their own request alone.
request_id: ContextVar[str] = ContextVar("request_id", default=OUTSIDE)


class WithRequestId(logging.Filter):
    """Gives each record the id of its request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything through."""
        record.request_id = request_id.get()
        return True


REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
DRAINED_BYTES = 4 * 2**20
DRAINED_S = 2.0


class RequestId:
    """Gives each request an id, the client's own where it is harmless, and says it in the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        own_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = own_id
        # Never taken back: the server logs what went wrong after this returns, still in this request's task.
        request_id.set(own_id)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = own_id
            await send(message)

        await self.app(scope, receive, named)


class Measure:
    """Counts and times requests by route, which the router leaves in the scope."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began_s, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.observe(scope["method"], route, status, time.perf_counter() - began_s)


class UnreadBody:
    """Ends what a refused request still sends: a short rest is read away, a long one cut off.

    Without it a client that does not wait for `100 Continue` would go on to send gigabytes into the void.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        unread = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        begun = "expect" not in headers

        async def noted() -> Message:
            nonlocal unread, begun
            begun = True
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def close_or_send(message: Message) -> None:
            if message["type"] == "http.response.start" and unread:
                if begun:
                    await _read_away(noted)
                if unread:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, noted, close_or_send)


async def _read_away(receive: Receive) -> None:
    seen_bytes, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAINED_S):
            while more and seen_bytes < DRAINED_BYTES:
                message = await receive()
                more = message.get("more_body", False)
                seen_bytes += len(message.get("body", b""))
