"""The workers that are alive, by the entries that they refresh."""

from typing import Any

import redis

from state.redis import KEY_PREFIX, server_time_s, translated

WORKERS = KEY_PREFIX + "workers"
MEMORY = KEY_PREFIX + "workers:memory"


class WorkerRegistry:
    """Names of workers and when each counts as dead, by the clock of Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def refresh(self, name: str, ttl_s: float, *, memory_bytes: int | None = None) -> None:
        """Register a worker, which will do so again within `ttl_s` seconds, with the memory it may use."""
        with translated():
            now = server_time_s(self._client)
            if memory_bytes is not None:
                self._client.hset(MEMORY, name, str(memory_bytes))
            self._client.zadd(WORKERS, {name: now + ttl_s})
            dead: Any = self._client.zrangebyscore(WORKERS, "-inf", now)
            if dead:
                self._client.zrem(WORKERS, *dead)
                self._client.hdel(MEMORY, *dead)

    def leave(self, name: str) -> None:
        with translated():
            self._client.zrem(WORKERS, name)
            self._client.hdel(MEMORY, name)

    def largest_memory_bytes(self) -> int | None:
        """Return the most memory that a worker may use; None where one has not said, or none is alive."""
        alive = self.alive()
        if not alive:
            return None
        with translated():
            said: Any = self._client.hmget(MEMORY, alive)
        return None if None in said else max(map(int, said))

    def alive(self) -> list[str]:
        with translated():
            names: Any = self._client.zrangebyscore(WORKERS, server_time_s(self._client), "+inf")
            return sorted(names)
