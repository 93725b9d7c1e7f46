"""Looking up the state of things for Prometheus."""

import logging

from service.metrics import Gauges
from service.uploads import Space
from state.errors import StoreUnavailable
from state.jobs import JobStore
from state.queue import JobQueue
from state.scripts import WorkerRegistry

log = logging.getLogger("eckart.service")


def look(*, jobs: JobStore, queue: JobQueue, workers: WorkerRegistry, space: Space) -> Gauges:
    """Look now; with Redis away, what it knows is left out."""
    try:
        counts = jobs.counts()
        return Gauges(
            jobs=counts.by_state,
            queue_depth=queue.depth(),
            queue_oldest_s=counts.oldest_queued_s or 0.0,
            disk_free_bytes=space.free_bytes(),
            workers=len(workers.alive()),
        )
    except StoreUnavailable:
        log.warning("metrics: Redis is away")
        return Gauges(
            jobs={}, queue_depth=None, queue_oldest_s=None, disk_free_bytes=space.free_bytes(), workers=None
        )
