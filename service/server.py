"""uvicorn, set up for the API."""

import logging
import logging.config
import resource
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.main import create_app
from service.protocol import EckartProtocol
from service.requestid import WithRequestId
from service.settings import Settings

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
