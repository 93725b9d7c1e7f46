"""Keeping a claim alive from a thread, and telling the work when to stop."""

import logging
import threading
from types import TracebackType
from typing import Protocol, Self

from schemas.job import NO_PROGRESS, Progress
from state.errors import StoreUnavailable
from state.jobs import JobStore
from state.records import Claim

log = logging.getLogger(__name__)

# Layers may end every few milliseconds; nobody polls faster than this.
LEAST_BEAT_S = 0.2


class LeaseLost(Exception):  # noqa: N818 - an end, not an error
    """The job was canceled, deleted or given to another attempt: this one must publish nothing."""


class WorkerStopping(Exception):  # noqa: N818 - an end, not an error
    """The worker is shutting down: the job goes back to the queue."""


class StopSignal(Protocol):
    """What says that the worker is shutting down; shared between processes."""

    def is_set(self) -> bool: ...


class Lease:
    """A claim's heartbeat; `observe` is what the pipeline tells its progress to.

    The work never waits for Redis: a beat that fails is tried again, since nobody else can claim the job
    while Redis is away, and the fence decides at the end.
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
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

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
        """Pass progress on, and stop the work where it is no longer wanted."""
        self._progress = progress
        self._wake.set()
        if self._lost.is_set():
            raise LeaseLost(self._claim.record.id)
        if self._stopping.is_set():
            raise WorkerStopping(self._claim.record.id)

    def _beat(self) -> None:
        while not self._done.wait(LEAST_BEAT_S):
            self._wake.wait(self._heartbeat_s)
            self._wake.clear()
            if self._done.is_set():
                return
            try:
                mine = self._jobs.heartbeat(self._claim.record.id, self._claim.fence, self._progress)
            except StoreUnavailable as error:
                log.warning("no heartbeat for job %s: %s", self._claim.record.id, error)
                continue
            except Exception:
                # A full disk, say, while records are rebuilt: the next beat may well succeed.
                log.exception("no heartbeat for job %s", self._claim.record.id)
                continue
            if not mine:
                self._lost.set()
                return
