"""The workers that are alive, by the entries that they refresh."""

from typing import Any

import redis

from state.redis import KEY_PREFIX, translated

WORKERS = KEY_PREFIX + "workers"


class WorkerRegistry:
    """Names of workers and when each counts as dead, by the clock of Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def refresh(self, name: str, ttl_s: float) -> None:
        """Register a worker, which will do so again within `ttl_s` seconds."""
        with translated():
            now = self._now()
            self._client.zadd(WORKERS, {name: now + ttl_s})
            self._client.zremrangebyscore(WORKERS, "-inf", now)

    def leave(self, name: str) -> None:
        with translated():
            self._client.zrem(WORKERS, name)

    def alive(self) -> list[str]:
        with translated():
            names: Any = self._client.zrangebyscore(WORKERS, self._now(), "+inf")
            return sorted(names)

    def _now(self) -> float:
        time: Any = self._client.time()
        seconds, microseconds = time
        return float(seconds) + float(microseconds) / 1e6
