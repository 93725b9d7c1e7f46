"""The doorbell: a Celery message is a job id and nothing else. Celery is imported here alone."""

from typing import Any
from urllib.parse import parse_qs

from celery import Celery
from kombu.exceptions import OperationalError

from state.errors import StoreUnavailable
from state.redis import BROKER_PREFIX, QUEUE, QUEUE_KEY, TASK, redis_client, translated

# Longer than any job: until then Celery must not give a running job's message to a second worker.
VISIBILITY_TIMEOUT_S = 86_400
SEND_TIMEOUT_S = 3


def celery_settings(redis_url: str) -> dict[str, Any]:
    """Return what the producer and the worker must agree on, and what makes a late message harmless."""
    visibility = {"visibility_timeout": VISIBILITY_TIMEOUT_S}
    return {
        "broker_url": broker_url(redis_url),
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": visibility
        | {
            # A message that a killed worker held comes back within 10 s of that timeout, not 100 s.
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "global_keyprefix": BROKER_PREFIX,
        },
        # Celery asks for the same number at three places; the shortest wins.
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "result_backend_transport_options": visibility,
        # The record is the state: no results, no events, no remote control of what a job is.
        "result_backend": None,
        "task_ignore_result": True,
        "worker_send_task_events": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_default_queue": QUEUE,
    }


def broker_url(redis_url: str) -> str:
    """Turn redis-py's form of a unix socket's address into Celery's."""
    if not redis_url.startswith("unix://"):
        return redis_url
    address, _, query = redis_url.removeprefix("unix://").partition("?")
    database = parse_qs(query).get("db", ["0"])[0]
    return f"redis+socket://{address}?virtual_host={database}"


class JobQueue:
    """The producer; a message that cannot be sent is the next sweep's business."""

    def __init__(self, redis_url: str, *, timeout_s: float = SEND_TIMEOUT_S) -> None:
        settings = celery_settings(redis_url)
        # A request waits for the doorbell for moments only; the worker's own connections wait longer.
        settings["broker_transport_options"] |= {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "max_retries": 0,
        }
        self._celery = Celery("eckart", set_as_current=False, autofinalize=True)
        self._celery.conf.update(settings)
        self._client = redis_client(redis_url, timeout_s=timeout_s)

    def send(self, job_id: str) -> None:
        """Ring for a job, or raise `StoreUnavailable` within a few seconds."""
        try:
            # By name and to the default exchange: nothing of it is kept in Redis, so a wipe loses no route.
            with translated():
                self._celery.send_task(TASK, args=[job_id], queue=QUEUE, retry=False, ignore_result=True)
        except OperationalError as error:
            raise StoreUnavailable from error

    def depth(self) -> int:
        """Return how many messages no worker has taken yet."""
        with translated():
            return int(self._client.llen(QUEUE_KEY))

    def ping(self) -> None:
        """Raise `StoreUnavailable` where Redis does not answer."""
        with translated():
            self._client.ping()

    def close(self) -> None:
        """Give the connections back."""
        self._celery.close()
        self._client.close()
