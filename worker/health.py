"""`python -m worker.health`: check that a worker on this host is alive, without importing torch."""

import socket
import sys

from pydantic import ValidationError

from state.errors import RedisUnavailable
from state.redis import redis_client
from state.settings import setting_errors
from state.workers import WorkerRegistry
from worker.settings import Settings


def main() -> int:
    """Return 0 if a worker of this host is in the registry, else 1."""
    try:
        settings = Settings()
    except ValidationError as error:
        return _unhealthy("\n".join(setting_errors(error)))
    if settings.redis_url is None:
        return _unhealthy("ECKART_REDIS_URL is not set")
    try:
        alive = WorkerRegistry(redis_client(settings.redis_url)).alive()
    except RedisUnavailable as error:
        return _unhealthy(str(error))
    if not any(name.startswith(f"{socket.gethostname()}:") for name in alive):
        return _unhealthy("no worker of this host is alive")
    return 0


def _unhealthy(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
