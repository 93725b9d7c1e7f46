"""What Prometheus may ask: counted as it happens, or looked up when it asks."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from schemas.job import JobState
from service.uploads import Space
from state.errors import StoreUnavailable
from state.jobs import JobStore
from state.queue import JobQueue
from state.scripts import WorkerRegistry

DURATIONS_S = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600)


@dataclass(frozen=True, slots=True)
class Gauges:
    """The state of things at one moment; what cannot be looked up is left out."""

    jobs: Mapping[JobState, int]
    queue_depth: int | None
    queue_oldest_s: float | None
    disk_free_bytes: int | None
    workers: int | None


class _Lookup(Collector):
    def __init__(self, look: Callable[[], Gauges]) -> None:
        self._look = look

    def describe(self) -> list[GaugeMetricFamily]:
        """Name nothing beforehand: registering must not look."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Look now."""
        seen = self._look()
        jobs = GaugeMetricFamily("eckart_jobs", "Jobs by state.", labels=["state"])
        for state, count in seen.jobs.items():
            jobs.add_metric([state], count)
        yield jobs
        for name, text, value in (
            ("eckart_job_queue_depth", "Messages that no worker has taken.", seen.queue_depth),
            ("eckart_job_queue_oldest_seconds", "Age of the oldest queued job.", seen.queue_oldest_s),
            ("eckart_disk_free_bytes", "Free bytes where files are stored.", seen.disk_free_bytes),
            ("eckart_workers", "Workers that are alive.", seen.workers),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, text, value=value)


class Metrics:
    """One application's numbers, in a registry of its own."""

    def __init__(self, look: Callable[[], Gauges]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Lookup(look))
        self._requests = Histogram(
            "http_server_request_duration_seconds",
            "Requests by route, answered or not.",
            ["method", "route", "status"],
            buckets=DURATIONS_S,
            registry=self._registry,
        )
        self.upload_bytes = Counter(
            "eckart_upload_bytes", "Bytes of request bodies taken in.", registry=self._registry
        )
        self.requeued = Counter(
            "eckart_reaper_requeued", "Jobs that the reaper sent again.", registry=self._registry
        )

    def observe(self, method: str, route: str, status: int, duration_s: float) -> None:
        """Note one request."""
        self._requests.labels(method, route, str(status)).observe(duration_s)

    def text(self) -> bytes:
        """Render everything; looks things up, so call it in a thread."""
        return generate_latest(self._registry)


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
