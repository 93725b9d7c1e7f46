"""Names that the producer, the consumer and the sweep have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import redis
from redis import exceptions
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from state.errors import StoreUnavailable

KEY_PREFIX = "eckart:"
TASK = "eckart.compress"
QUEUE = "eckart"
# Before every key of Celery's, so that nobody else's tasks share our unacknowledged messages.
BROKER_PREFIX = KEY_PREFIX + "broker:"
QUEUE_KEY = BROKER_PREFIX + QUEUE

# A request waits at most a few seconds for a server that is away, then says so.
TIMEOUT_S = 5.0
RETRIES = 3

UNAVAILABLE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.MasterDownError,
)
# What a server says when its own disk fails it, or while a script of another client runs too long.
UNAVAILABLE_REPLIES = ("MISCONF", "BUSY", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN")


def client_url(redis_url: str) -> str:
    """Turn Celery's form of a unix socket's address, `redis+socket://`, into redis-py's, `unix://`."""
    if not redis_url.startswith("redis+socket://"):
        return redis_url
    parts = urlsplit(redis_url)
    query = parse_qs(parts.query)
    database = query.get("virtual_host", query.get("db", ["0"]))[0]
    return f"unix://{parts.netloc}{parts.path}?db={database}"


def redis_client(redis_url: str, *, timeout_s: float = TIMEOUT_S) -> redis.Redis:
    """Connect to `redis://`, `rediss://`, `unix://` or `redis+socket://`, lazily."""
    return redis.Redis.from_url(
        client_url(redis_url),
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # Safe, because every transition gives the same answer to the same call twice.
        retry=Retry(ExponentialBackoff(base=0.05, cap=0.5), RETRIES),
    )


@contextmanager
def translated() -> Iterator[None]:
    """Tell Redis' troubles as `StoreUnavailable`; a fault of ours stays what it is."""
    try:
        yield
    except UNAVAILABLE as error:
        raise StoreUnavailable from error
    except exceptions.ResponseError as error:
        if str(error).startswith(UNAVAILABLE_REPLIES):
            raise StoreUnavailable from error
        raise
