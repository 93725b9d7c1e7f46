"""The lease on a job: a thread renews it by heartbeats, and ends the process where the work cannot stop."""

import faulthandler
import logging
import os
import threading
import time
from types import TracebackType
from typing import Protocol, Self

from schemas.job import Progress
from state.errors import RedisUnavailable
from state.jobs.records import Claim
from state.jobs.store import JobStore
from worker.progress import Step
from worker.settings import Settings
from worker.trouble import Trouble, layer_hung

log = logging.getLogger(__name__)

# Layers may end every few milliseconds; clients do not poll faster than this.
MIN_INTERVAL_S = 0.2
# How often the thread looks whether the worker stops or a layer hangs.
WATCH_S = 1.0
# Who stops, or has lost the job, waits so long for the layer in work.
STOP_GRACE_S = 3.0
# Seconds that a layer may take for a unit of its cost: four times as long as 20 flops at 2 GFLOP/s.
LIMIT_S_PER_COST = 4e-8
# EX_TEMPFAIL of sysexits.h
EXIT_STATUS = 75
STDERR_FD = 2


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

    Numerical routines cannot be broken off. So where a layer hangs, or does not end soon enough after the
    worker was asked to stop, the thread gives the job back and ends the process; finished layers are kept.
    It also ends it where a layer goes on for a job that was canceled.
    """

    def __init__(self, jobs: JobStore, claim: Claim, settings: Settings, *, stopping: StopSignal) -> None:
        self._jobs = jobs
        self._claim = claim
        self._settings = settings
        self._stopping = stopping
        self._step: Step | None = None
        self._recorded: Progress | None = None
        self._begun_s = time.monotonic()
        self._unwanted_since_s: float | None = None
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
        if kind is not None and not self._lost.is_set() and self._progress() != self._recorded:
            # Attempts are counted by how far they got.
            self._renew()

    def observe(self, step: Step) -> None:
        """Note that a step begins; raise if the claim is lost or the worker stops."""
        self._step, self._begun_s = step, time.monotonic()
        self._wake.set()
        if self._lost.is_set():
            raise ClaimLost(self._claim.record.id)
        if self._stopping.is_set():
            raise WorkerStopping(self._claim.record.id)

    def _keep_renewing(self) -> None:
        heartbeat_s = self._settings.heartbeat_s
        due_s = time.monotonic() + heartbeat_s
        while not self._done.wait(MIN_INTERVAL_S):
            woken = self._wake.wait(min(heartbeat_s, WATCH_S))
            self._wake.clear()
            if self._done.is_set():
                return
            self._end_if_hung()
            self._end_if_unwanted()
            if (woken or time.monotonic() >= due_s) and not self._lost.is_set():
                due_s = time.monotonic() + heartbeat_s
                if not self._renew():
                    self._lost.set()

    def _renew(self) -> bool:
        """Renew the lease; False: the claim is lost."""
        record, progress = self._claim.record, self._progress()
        idle_s = time.monotonic() - self._begun_s
        try:
            owned = self._jobs.renew_lease(record.id, self._claim.fence, progress, idle_s=idle_s)
        except RedisUnavailable as error:
            log.warning("job %s: heartbeat failed: %s", record.id, error)
            return True
        except Exception:
            # For example a full disk while records are restored; the next heartbeat may succeed.
            log.exception("job %s: heartbeat failed", record.id)
            return True
        self._recorded = progress
        return owned

    def _progress(self) -> Progress | None:
        # Layers are written while the next one is in work.
        return self._step.current() if self._step else None

    def _end_if_hung(self) -> None:
        cost, layer = (self._step.cost, self._step.layer) if self._step else (0, None)
        limit_s = max(self._settings.layer_limit_s, cost * LIMIT_S_PER_COST)
        if time.monotonic() - self._begun_s <= limit_s:
            return
        log.error(
            "job %s: %s has taken longer than %.0f s; this process ends, and another attempt begins",
            self._claim.record.id,
            f"layer {layer}" if layer else "a step",
            limit_s,
        )
        faulthandler.dump_traceback(file=STDERR_FD)
        self._renew()
        trouble = layer_hung(layer, limit_s)
        try:
            retry(self._jobs, self._claim, trouble, self._settings)
        except Exception:
            log.exception("job %s: it returns to the queue when its lease expires", self._claim.record.id)
        os._exit(EXIT_STATUS)

    def _end_if_unwanted(self) -> None:
        """End the process in the middle of a layer, some seconds after the worker stops or lost the job."""
        # Outside of layers, the work stops by itself soon, or is about to publish its result.
        if self._step is None or self._step.layer is None:
            return
        lost = self._lost.is_set()
        if not lost and not self._stopping.is_set():
            return
        if self._unwanted_since_s is None:
            self._unwanted_since_s = time.monotonic()
        if time.monotonic() - self._unwanted_since_s < STOP_GRACE_S:
            return
        if lost:
            # What it leaves is removed when the lease has ended.
            log.info(
                "job %s: no longer wanted in the middle of layer %s", self._claim.record.id, self._step.layer
            )
        else:
            self._release()
        os._exit(EXIT_STATUS)

    def _release(self) -> None:
        record, layer = self._claim.record, self._step.layer if self._step else None
        log.info("job %s: returned to the queue in the middle of layer %s", record.id, layer)
        self._renew()
        try:
            self._jobs.release(record.id, self._claim.fence)
        except Exception:
            log.exception("job %s: it returns to the queue when its lease expires", record.id)


def retry(jobs: JobStore, claim: Claim, trouble: Trouble, settings: Settings) -> bool:
    """Give a job back after trouble; False: this attempt had lost it."""
    return jobs.retry(
        claim.record.id,
        claim.fence,
        trouble.problem,
        pause_s=trouble.pauses * settings.retry_pause_s,
        uncounted_for_s=None if trouble.counts else settings.disk_wait_s,
    )
