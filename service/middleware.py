"""ASGI middleware: request ids, measurement of requests, and bodies that no route has read."""

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
from service.settings import ROOT_PATH

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
DRAIN_LIMIT_BYTES = 4 * 2**20
DRAIN_TIMEOUT_S = 2.0
LINGER_LIMIT_BYTES = 32 * 2**20
LINGER_QUIET_S = 0.3

# A context variable: each task, and the threads that it starts, see the id of their own request.
request_id: ContextVar[str] = ContextVar("request_id", default="-")


class WithRequestId(logging.Filter):
    """Adds the id of the current request to each log record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class RequestId:
    """Gives each request an id, which the answer carries; the client's own id is used if it is harmless."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        own_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = own_id
        # Never reset: the server logs an exception after this returns, still in this request's task.
        request_id.set(own_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = own_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class RootPath:
    """Tells the application under which path a proxy serves it, so that its addresses lead back there.

    The setting wins; without it the request's X-Forwarded-Prefix counts if it is a harmless path. Nobody
    but the client that sends the header sees the difference.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = self._placed(scope)
        await self.app(scope, receive, send)

    def _placed(self, scope: Scope) -> Scope:
        """Return the request under its root path, which ASGI wants to be part of `path` too."""
        path = scope["path"]
        if self.root_path:
            root, stripped = self.root_path, not path.startswith(self.root_path + "/")
        else:
            # Only proxies that take the prefix off the path send this header.
            root, stripped = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/"), True
        if ROOT_PATH.fullmatch(root) is None:
            return scope
        # A copy: the access log shows the address that was asked for.
        return {**scope, "root_path": root, "path": root + path if stripped else path}


class Measure:
    """Counts and times requests by route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began_s, status = time.perf_counter(), 500

        async def note_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        finally:
            # The router leaves the route that it chose in the scope.
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.observe(scope["method"], route, status, time.perf_counter() - began_s)


class UnreadBody:
    """Ends the body of a request that is answered early: a short rest is read, a long one is cut off.

    Otherwise a client that does not wait for `100 Continue` would send gigabytes that nobody reads. The
    connection is not closed at once after the answer: that would reset it, and a sender who is not reading
    yet, such as a proxy, would never see the answer.
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
        closing = False

        async def note_receive() -> Message:
            nonlocal unread, begun
            begun = True
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def drain_then_send(message: Message) -> None:
            nonlocal closing
            if message["type"] == "http.response.start" and unread:
                if begun:
                    await _drain(note_receive, DRAIN_LIMIT_BYTES, quiet_s=DRAIN_TIMEOUT_S)
                if unread:
                    MutableHeaders(scope=message)["Connection"] = "close"
                    closing = begun
            elif closing and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _drain(note_receive, LINGER_LIMIT_BYTES, quiet_s=LINGER_QUIET_S)
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, note_receive, drain_then_send)


async def _drain(receive: Receive, limit_bytes: int, *, quiet_s: float) -> None:
    """Read on for a while, or until nothing has come for `quiet_s`."""
    seen_bytes, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            while more and seen_bytes < limit_bytes:
                async with asyncio.timeout(quiet_s):
                    message = await receive()
                more = message.get("more_body", False)
                seen_bytes += len(message.get("body", b""))
