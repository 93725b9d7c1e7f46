"""The Celery queue: a message is a job id and nothing else. Nothing else in `state` imports Celery."""

from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from state.errors import RedisUnavailable
from state.redis import BROKER_PREFIX, QUEUE, QUEUE_KEY, TASK, broker_url, redis_client, translated

# Longer than any job: before it ends, Celery must not deliver a running job's message again.
VISIBILITY_TIMEOUT_S = 86_400
SEND_TIMEOUT_S = 3


def celery_settings(redis_url: str) -> dict[str, Any]:
    """Return the settings that the service and the worker share, with which a late message is harmless."""
    visibility = {"visibility_timeout": VISIBILITY_TIMEOUT_S}
    return {
        "broker_url": broker_url(redis_url),
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": visibility
        | {
            # The message of a killed worker comes back within 10 s after that timeout, not 100 s.
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "global_keyprefix": BROKER_PREFIX,
        },
        # Celery reads the same number in three places; the shortest wins.
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "result_backend_transport_options": visibility,
        # Our record is the state of a job: Celery stores no results and sends no events.
        "result_backend": None,
        "task_ignore_result": True,
        "worker_send_task_events": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_default_queue": QUEUE,
    }


class JobQueue:
    """Sends messages to the workers; the next sweep sends those that could not be sent."""

    def __init__(self, redis_url: str, *, timeout_s: float = SEND_TIMEOUT_S) -> None:
        settings = celery_settings(redis_url)
        # A request must not wait long for the broker; the worker's own connections may.
        settings["broker_transport_options"] |= {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "max_retries": 0,
        }
        self._celery = Celery("eckart", set_as_current=False, autofinalize=True)
        self._celery.conf.update(settings)
        self._client = redis_client(redis_url, timeout_s=timeout_s)

    def send(self, job_id: str) -> None:
        """Enqueue a job, or raise `RedisUnavailable` within a few seconds."""
        try:
            # By name and to the default exchange: Redis stores no routes, so it can lose none.
            with translated():
                self._celery.send_task(TASK, args=[job_id], queue=QUEUE, retry=False, ignore_result=True)
        except OperationalError as error:
            raise RedisUnavailable from error

    def send_first(self, job_ids: Sequence[str]) -> None:
        """Enqueue jobs before all others, in this order: those that waited before do not wait once more."""
        for job_id in reversed(job_ids):
            self.send(job_id)
            # Workers take from the right. A message that comes in between is moved in its place.
            with translated():
                self._client.lmove(QUEUE_KEY, QUEUE_KEY, "LEFT", "RIGHT")

    def depth(self) -> int:
        """Return how many messages no worker has taken yet."""
        with translated():
            return int(self._client.llen(QUEUE_KEY))

    def ping(self) -> None:
        """Raise `RedisUnavailable` where Redis does not answer."""
        with translated():
            self._client.ping()

    def close(self) -> None:
        self._celery.close()
        self._client.close()
