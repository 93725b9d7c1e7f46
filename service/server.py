"""uvicorn, set up for the API."""

import logging
import logging.config
from typing import Any

import uvicorn

from service.main import create_app
from service.protocol import EckartProtocol
from service.settings import Settings

QUIET_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
FORMAT = "%(asctime)s %(levelname)s %(message)s"


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
    "filters": {"without_probes": {"()": WithoutProbes}},
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"},
        "access": {
            "class": "logging.StreamHandler",
            "formatter": "line",
            "stream": "ext://sys.stderr",
            "filters": ["without_probes"],
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


def server_config(settings: Settings) -> uvicorn.Config:
    """Say how uvicorn runs the application."""
    return uvicorn.Config(
        create_app(settings),
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
    uvicorn.Server(server_config(settings)).run()
