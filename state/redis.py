"""Connecting to Redis: names that all processes share, forms of its address, and its errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from redis import exceptions
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from state.errors import RedisUnavailable

KEY_PREFIX = "eckart:"
TASK = "eckart.compress"
QUEUE = "eckart"
# Prefixes every key of Celery, so that another application's tasks do not mix with our messages.
BROKER_PREFIX = KEY_PREFIX + "broker:"
QUEUE_KEY = BROKER_PREFIX + QUEUE

# A request waits a few seconds at most for a server that cannot be reached.
TIMEOUT_S = 5.0
RETRIES = 3

NO_EVICTION = "noeviction"

UNAVAILABLE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.MasterDownError,
)
# Replies of a server whose disk fails, or on which another client's script runs too long.
UNAVAILABLE_REPLIES = ("MISCONF", "BUSY", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN")


def client_url(redis_url: str) -> str:
    """Convert the address of a unix socket from Celery's form, `redis+socket://`, to redis-py's, `unix://`."""
    if not redis_url.startswith("redis+socket://"):
        return redis_url
    parts = urlsplit(redis_url)
    query = parse_qs(parts.query)
    database = query.get("virtual_host", query.get("db", ["0"]))[0]
    return f"unix://{parts.netloc}{parts.path}?db={database}"


def broker_url(redis_url: str) -> str:
    """Convert the address of a unix socket from redis-py's form to Celery's."""
    if not redis_url.startswith("unix://"):
        return redis_url
    address, _, query = redis_url.removeprefix("unix://").partition("?")
    database = parse_qs(query).get("db", ["0"])[0]
    return f"redis+socket://{address}?virtual_host={database}"


def redis_client(redis_url: str, *, timeout_s: float = TIMEOUT_S) -> redis.Redis:
    """Connect to `redis://`, `rediss://`, `unix://` or `redis+socket://`, lazily."""
    return redis.Redis.from_url(
        client_url(redis_url),
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # Safe, because every transition answers a repeated call like the first.
        retry=Retry(ExponentialBackoff(base=0.05, cap=0.5), RETRIES),
    )


def eviction_warning(client: redis.Redis) -> str | None:
    """Say that the server may drop records of jobs when its memory is full, if it is set up so."""
    try:
        with translated():
            policy = client.info("memory").get("maxmemory_policy", NO_EVICTION)
    except exceptions.NoPermissionError:
        return None
    if policy == NO_EVICTION:
        return None
    return (
        f"Redis is set to evict keys when its memory is full (maxmemory-policy {policy}), which loses jobs; "
        f"set maxmemory-policy to {NO_EVICTION}."
    )


@dataclass(frozen=True, slots=True)
class RedisMemory:
    """The memory that the server uses, and may use; 0: without limit, or not to be known."""

    used_bytes: int = 0
    limit_bytes: int = 0


def redis_memory(client: redis.Redis) -> RedisMemory:
    """Ask the server for its memory."""
    try:
        with translated():
            info = client.info("memory")
    except exceptions.NoPermissionError:
        return RedisMemory()
    return RedisMemory(int(info.get("used_memory", 0)), int(info.get("maxmemory", 0)))


def server_time_s(client: redis.Redis) -> float:
    """Return the time of the server's clock, in seconds since 1970."""
    with translated():
        time: Any = client.time()
    seconds, microseconds = time
    return float(seconds) + float(microseconds) / 1e6


@contextmanager
def translated() -> Iterator[None]:
    """Translate errors of the server into `RedisUnavailable`; errors of ours are not translated."""
    try:
        yield
    except UNAVAILABLE as error:
        raise RedisUnavailable from error
    except exceptions.ResponseError as error:
        if str(error).startswith(UNAVAILABLE_REPLIES):
            raise RedisUnavailable from error
        raise
