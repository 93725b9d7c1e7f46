"""uvicorn, set up for the API."""

import asyncio
import json
import logging
import logging.config
import resource
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service import errors
from service.app import create_app
from service.middleware import WithRequestId
from service.settings import Settings

MAX_HEAD_BYTES = 512 * 2**10
HEAD_TIMEOUT_S = 30.0


class EckartProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; a head that does not fit is refused, for the parser would keep all of it in memory."""
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(errors.HeadersTooLarge())

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self._end_head()
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that the head is whole."""
        self._end_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body; added to empty bytes it is not copied, as it would be in a bytearray."""
        if not self.cycle.body:
            self.cycle.body = b""  # type: ignore[assignment]  # uvicorn only ever adds to it and reads it
        super().on_body(body)

    def send_400_response(self, _msg: str) -> None:
        """Refuse what the parser could not make sense of."""
        self._refuse(errors.InvalidHttp())

    def _await_head(self) -> None:
        self._in_head = True
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()

    def _refuse(self, refusal: errors.Refusal) -> None:
        body = json.dumps(refusal.problem().model_dump(mode="json")).encode()
        head = (
            b"content-type: application/problem+json\r\n"
            b"content-length: %d\r\n"
            b"connection: close\r\n\r\n" % len(body)
        )
        self.transport.write(STATUS_LINE[refusal.status] + head + body)
        self.transport.close()


QUIET_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
FORMAT = "%(asctime)s %(levelname)s [%(request_id)s] %(message)s"


class WithoutProbes(logging.Filter):
    """Keeps health and metrics requests out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Look at the path, uvicorn's third argument."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        return len(arguments) < 3 or str(arguments[2]).partition("?")[0] not in QUIET_PATHS


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": FORMAT}},
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
        # It warns of each malformed body with the client's bytes; the refusal says all there is to say.
        "python_multipart": {"level": "ERROR"},
    },
}


class Server(uvicorn.Server):
    """uvicorn with the application in it; told to stop, it first ends the requests that only wait."""

    def __init__(self, settings: Settings) -> None:
        app = create_app(settings)
        super().__init__(server_config(app, settings))
        self._stopping = app.state.stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what waits, then let the rest come to its end."""
        self._stopping.set()
        await super().shutdown(sockets)


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Say how uvicorn runs the application."""
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
    """Run until told to stop."""
    logging.config.dictConfig(LOGGING)
    # A form keeps each of its files open until its end.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Server(settings).run()
