"""Tell whether the worker on this host lives, cheaply, without torch: `python -m worker.health`."""

import socket
import sys

from state.errors import StoreUnavailable
from state.redis import redis_client
from state.workers import WorkerRegistry
from worker.settings import Settings


def main() -> int:
    """Return 0 where a worker of this host has said lately that it lives."""
    settings = Settings()
    if settings.redis_url is None:
        return _ill("ECKART_REDIS_URL is not set")
    try:
        alive = WorkerRegistry(redis_client(settings.redis_url)).alive()
    except StoreUnavailable as error:
        return _ill(str(error))
    if not any(name.startswith(f"{socket.gethostname()}:") for name in alive):
        return _ill("no worker of this host is alive")
    return 0


def _ill(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
