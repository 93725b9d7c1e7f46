"""uvicorn, configured for the API: its HTTP protocol with limits of ours, its log, its shutdown."""

import asyncio
import gc
import json
import logging
import logging.config
import resource
import socket
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from schemas.problem import ProblemKind
from service.app import create_app
from service.errors import ProblemError
from service.middleware import WithRequestId
from service.settings import Settings

MAX_HEAD_BYTES = 512 * 2**10
HEAD_TIMEOUT_S = 30.0
SWITCH_S = 0.0005
# The first two are Python's own.
COLLECT_AFTER = (700, 10, 1000)
PROBE_PATHS = frozenset({"/livez", "/readyz", "/metrics"})


class EckartProtocol(HttpToolsProtocol):
    """One connection. It uses internals of uvicorn (docs/decisions/0012-uvicorn-protocol.md).

    Unlike uvicorn's own protocol, it answers malformed HTTP with a problem, limits a request's head in size
    and duration, and does not copy the body.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse an oversized head, all of which the parser would keep in memory."""
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(ProblemError(ProblemKind.HEADERS_TOO_LARGE))

    def on_message_begin(self) -> None:
        self._end_head()
        self._begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Receive a piece of the body; appended to empty bytes, unlike to a bytearray, it is not copied."""
        if not self.cycle.body:
            self.cycle.body = b""  # type: ignore[assignment]  # uvicorn only appends to it and reads it
        super().on_body(body)

    def send_400_response(self, _msg: str) -> None:
        """Answer what the parser could not parse."""
        self._refuse(ProblemError(ProblemKind.INVALID_HTTP))

    def _begin_head(self) -> None:
        self._in_head = True
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()

    def _refuse(self, error: ProblemError) -> None:
        body = json.dumps(error.problem().model_dump(mode="json")).encode()
        head = (
            b"content-type: application/problem+json\r\n"
            b"x-content-type-options: nosniff\r\n"
            b"content-length: %d\r\n"
            b"connection: close\r\n\r\n" % len(body)
        )
        self.transport.write(STATUS_LINE[error.kind.status] + head + body)
        self.transport.close()


class WithoutProbes(logging.Filter):
    """Keeps health and metrics requests out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        # The path is the third argument of uvicorn's log record.
        arguments = record.args if isinstance(record.args, tuple) else ()
        return len(arguments) < 3 or str(arguments[2]).partition("?")[0] not in PROBE_PATHS


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s [%(request_id)s] %(message)s"}},
    "filters": {"with_request_id": {"()": WithRequestId}, "without_probes": {"()": WithoutProbes}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "line",
            "stream": "ext://sys.stderr",
            "filters": ["with_request_id"],
        },
        "access": {
            "class": "logging.StreamHandler",
            "formatter": "line",
            "stream": "ext://sys.stderr",
            "filters": ["with_request_id", "without_probes"],
        },
    },
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {
        "eckart": {"level": "INFO"},
        "uvicorn.error": {"level": "INFO"},
        "uvicorn.access": {"level": "INFO", "handlers": ["access"], "propagate": False},
        # Its warnings about malformed bodies quote the client's bytes; our problem says what is wrong.
        "python_multipart": {"level": "ERROR"},
    },
}


class Server(uvicorn.Server):
    """uvicorn with the application; at shutdown, requests that wait for a job's change are answered first."""

    def __init__(self, settings: Settings) -> None:
        app = create_app(settings)
        super().__init__(server_config(app, settings))
        self._stopping = app.state.stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping.set()
        await super().shutdown(sockets)


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=EckartProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_s,
    )


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM."""
    logging.config.dictConfig(LOGGING)
    # A multipart upload keeps all of its files open until it is complete.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _let_requests_in()
    Server(settings).run()


def _let_requests_in() -> None:
    """Keep one request from holding up all others for long, as they share the interpreter."""
    # A thread that plans gives up the interpreter only after this time, at each turn of another request.
    sys.setswitchinterval(SWITCH_S)
    # A full collection looks at all objects of a plan: up to 100 ms each time. Cycles that last are few here.
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
