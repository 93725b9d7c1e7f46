"""The lease on a job: a thread renews the claim by heartbeats, and stops the work once the claim is lost."""

import logging
import threading
from types import TracebackType
from typing import Protocol, Self

from schemas.job import NO_PROGRESS, Progress
from state.errors import RedisUnavailable
from state.jobs import JobStore
from state.records import Claim

log = logging.getLogger(__name__)

# Layers may end every few milliseconds; clients do not poll faster than this.
MIN_INTERVAL_S = 0.2


class ClaimLost(Exception):  # noqa: N818 - an end, not an error
    """The job was canceled, deleted or claimed by another attempt: this attempt must publish nothing."""


class WorkerStopping(Exception):  # noqa: N818 - an end, not an error
    """The worker is shutting down: the job returns to the queue."""


class StopSignal(Protocol):
    """An event, shared between processes, that is set when the worker shuts down."""

    def is_set(self) -> bool: ...


class Lease:
    """Renews the lease of a claim from a thread; `observe` is the pipeline's observer of progress.

    The work never waits for Redis. A heartbeat that fails is repeated: no other worker can claim the job
    while Redis is unavailable, and the fence decides at the end.
    """

    def __init__(self, jobs: JobStore, claim: Claim, *, heartbeat_s: float, stopping: StopSignal) -> None:
        self._jobs = jobs
        self._claim = claim
        self._heartbeat_s = heartbeat_s
        self._stopping = stopping
        self._progress = NO_PROGRESS
        self._wake = threading.Event()
        self._done = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._wake.set()
        self._thread.join()

    def observe(self, progress: Progress) -> None:
        """Record the progress; raise if the claim is lost or the worker stops."""
        self._progress = progress
        self._wake.set()
        if self._lost.is_set():
            raise ClaimLost(self._claim.record.id)
        if self._stopping.is_set():
            raise WorkerStopping(self._claim.record.id)

    def _keep_renewing(self) -> None:
        while not self._done.wait(MIN_INTERVAL_S):
            self._wake.wait(self._heartbeat_s)
            self._wake.clear()
            if self._done.is_set():
                return
            try:
                owned = self._jobs.renew_lease(self._claim.record.id, self._claim.fence, self._progress)
            except RedisUnavailable as error:
                log.warning("job %s: heartbeat failed: %s", self._claim.record.id, error)
                continue
            except Exception:
                # For example a full disk while records are restored; the next heartbeat may succeed.
                log.exception("job %s: heartbeat failed", self._claim.record.id)
                continue
            if not owned:
                self._lost.set()
                return
