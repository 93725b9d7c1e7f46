"""Which workers are alive: each says so from time to time."""

from typing import Any

import redis

from state.connection import translated
from state.scripts import PREFIX

WORKERS = PREFIX + "workers"


class WorkerRegistry:
    """Names of workers and when they count as dead, by the clock of Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def beat(self, name: str, ttl_s: float) -> None:
        """Say that a worker lives, and will say so again within that time."""
        with translated():
            now = self._now()
            self._client.zadd(WORKERS, {name: now + ttl_s})
            self._client.zremrangebyscore(WORKERS, "-inf", now)

    def leave(self, name: str) -> None:
        """Say that a worker stops."""
        with translated():
            self._client.zrem(WORKERS, name)

    def alive(self) -> list[str]:
        """Return the names of the workers that live."""
        with translated():
            names: Any = self._client.zrangebyscore(WORKERS, self._now(), "+inf")
            return sorted(names)

    def _now(self) -> float:
        time: Any = self._client.time()
        seconds, microseconds = time
        return float(seconds) + float(microseconds) / 1e6
