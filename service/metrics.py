"""Prometheus metrics: counters that grow as things happen, and gauges that are read when Prometheus asks."""

import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.maintenance.turns import Turns
from service.uploads.streaming import DiskSpace
from state.errors import RedisUnavailable
from state.jobs.queue import JobQueue
from state.jobs.store import JobStore
from state.workers import WorkerRegistry

DURATIONS_S = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600)

log = logging.getLogger("eckart.service")


class StateCollector(Collector):
    """Reads the gauges; without Redis only those that do not need it."""

    def __init__(
        self, *, jobs: JobStore, queue: JobQueue, workers: WorkerRegistry, space: DiskSpace, turns: Turns
    ) -> None:
        self._jobs = jobs
        self._queue = queue
        self._workers = workers
        self._space = space
        self._turns = turns

    def describe(self) -> list[GaugeMetricFamily]:
        """Return nothing, or registering would call `collect`, before Redis is needed."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "eckart_disk_free_bytes", "Free bytes where files are stored.", value=self._space.free_bytes()
        )
        ages = GaugeMetricFamily(
            "eckart_reaper_age_seconds", "Time since the last good turn of each step.", labels=["step"]
        )
        for step, age_s in self._turns.ages_s().items():
            ages.add_metric([step], age_s)
        yield ages
        try:
            counts = self._jobs.counts()
            depth = self._queue.depth()
            alive = len(self._workers.alive())
            memory = self._jobs.redis_memory()
        except RedisUnavailable:
            log.warning("metrics: Redis is unavailable")
            return
        jobs = GaugeMetricFamily("eckart_jobs", "Jobs by state.", labels=["state"])
        for state, count in counts.by_state.items():
            jobs.add_metric([state], count)
        yield jobs
        for name, text, value in (
            ("eckart_job_queue_depth", "Messages that no worker has taken.", depth),
            (
                "eckart_job_queue_oldest_seconds",
                "Age of the oldest queued job.",
                counts.oldest_queued_s or 0.0,
            ),
            (
                "eckart_job_stalled_seconds",
                "Time since the last step of the running job that is longest without one.",
                counts.longest_step_s,
            ),
            ("eckart_workers", "Workers that are alive.", alive),
            ("eckart_redis_used_bytes", "Memory that Redis uses.", memory.used_bytes),
            ("eckart_redis_limit_bytes", "Memory that Redis may use; 0 without a limit.", memory.limit_bytes),
        ):
            yield GaugeMetricFamily(name, text, value=value)


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        self._requests = Histogram(
            "http_server_request_duration_seconds",
            "Duration of requests by method, route and status.",
            ["method", "route", "status"],
            buckets=DURATIONS_S,
            registry=self._registry,
        )
        self.upload_bytes = Counter(
            "eckart_upload_bytes", "Bytes of request bodies received.", registry=self._registry
        )
        self.queued_again = Counter(
            "eckart_reaper_requeued", "Jobs that the reaper queued again.", registry=self._registry
        )
        self.webhooks = Counter(
            "eckart_webhook_attempts", "Attempts to deliver webhooks.", ["outcome"], registry=self._registry
        )
        self._reconciled = Counter(
            "eckart_reconciled",
            "What was removed since nobody needs it, or restored since it was lost.",
            ["what"],
            registry=self._registry,
        )

    def reconciled(self, what: str, count: int) -> None:
        """Count what was removed or restored."""
        self._reconciled.labels(what).inc(count)

    def observe(self, method: str, route: str, status: int, duration_s: float) -> None:
        """Count one request."""
        self._requests.labels(method, route, str(status)).observe(duration_s)

    def text(self) -> bytes:
        """Render all metrics; this reads from Redis and the disk, so call it in a thread."""
        return generate_latest(self._registry)
