"""Looking up the state of things for Prometheus."""

import logging
import time
from typing import get_args

from redis import Redis

from schemas.job import JobState
from service.metrics import Gauges
from service.uploads import Space
from state.connection import translated
from state.errors import StoreUnavailable
from state.queue import JobQueue
from state.scripts import PREFIX
from state.workers import WorkerRegistry

log = logging.getLogger("eckart.service")


def look(*, redis: Redis, queue: JobQueue, workers: WorkerRegistry, space: Space) -> Gauges:
    """Look now; with Redis away, what it knows is left out."""
    try:
        return Gauges(
            jobs=_jobs_by_state(redis),
            queue_depth=queue.depth(),
            queue_oldest_s=_oldest_s(redis),
            disk_free_bytes=space.free_bytes(),
            workers=len(workers.alive()),
        )
    except StoreUnavailable:
        log.warning("metrics: Redis is away")
        return Gauges(
            jobs={}, queue_depth=None, queue_oldest_s=None, disk_free_bytes=space.free_bytes(), workers=None
        )


def _jobs_by_state(redis: Redis) -> dict[JobState, int]:
    states: tuple[JobState, ...] = get_args(JobState)
    with translated():
        return {state: int(redis.zcard(f"{PREFIX}jobs:{state}")) for state in states}


def _oldest_s(redis: Redis) -> float:
    with translated():
        oldest = redis.zrange(f"{PREFIX}jobs:queued", 0, 0, withscores=True)
    return max(0.0, time.time() - float(oldest[0][1]) / 1e6) if oldest else 0.0
