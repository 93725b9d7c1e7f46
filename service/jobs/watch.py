"""Watching jobs: one poll of Redis per job and process, however many listen."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from threading import Event

from starlette.concurrency import run_in_threadpool

from schemas.job import TERMINAL
from schemas.problem import ProblemKind
from service.errors import ProblemError
from state.errors import JobNotFound, RedisUnavailable
from state.jobs.records import JobView
from state.jobs.store import JobStore

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.5

log = logging.getLogger("eckart.service")


class JobWatches:
    """The jobs that are being watched. Used on the event loop only."""

    def __init__(
        self,
        jobs: JobStore,
        stopping: Event,
        *,
        most_streams: int,
        most_streams_each: int,
        most_each: int,
    ) -> None:
        """Watch jobs of all owners, for at most so many event streams, of all and of one owner.

        `most_each`: of one owner's streams and held answers together.
        """
        self._jobs = jobs
        self._stopping = stopping
        self._most_streams = most_streams
        self._most_streams_each = most_streams_each
        self._most_each = most_each
        self._streams: Counter[str] = Counter()
        self._listeners: Counter[str] = Counter()
        self._watches: dict[str, _Watch] = {}

    @contextmanager
    def stream_place(self, owner: str) -> Iterator[None]:
        """Take one of the places for event streams, or refuse; no owner can take those of all."""
        _require(self._streams[owner], self._most_streams_each, "event streams are open")
        _require(self._streams.total(), self._most_streams, "event streams are open")
        with self.place(owner), _counted(self._streams, owner):
            yield

    @contextmanager
    def place(self, owner: str) -> Iterator[None]:
        """Take one of an owner's places for those who listen or wait, or refuse."""
        _require(self._listeners[owner], self._most_each, "requests wait for a job, or follow one")
        with _counted(self._listeners, owner):
            yield

    async def follow(self, job_id: str, *, quiet_s: float) -> AsyncGenerator[JobView | None]:
        """Yield the job now and whenever it changes, and None where it did not for `quiet_s`.

        This ends when the job ends or is gone, or when the service stops.
        """
        watch = self._watches.get(job_id)
        if watch is None:
            watch = self._watches[job_id] = _Watch(job_id)
            watch.task = asyncio.create_task(self._poll(watch))
        watch.listeners += 1
        try:
            seen: JobView | None = None
            while True:
                view, changed = watch.view, watch.changed
                if view is not None and view is not seen:
                    seen = view
                    yield view
                elif watch.over:
                    return
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(quiet_s):
                            await changed.wait()
                    if not changed.is_set():
                        yield None
        finally:
            watch.listeners -= 1
            if not watch.listeners:
                self._watches.pop(job_id, None)
                assert watch.task is not None
                watch.task.cancel()

    async def _poll(self, watch: "_Watch") -> None:
        pause_s = FIRST_PAUSE_S
        try:
            while not self._stopping.is_set():
                with suppress(RedisUnavailable):  # it may come back while the listeners wait
                    view = await run_in_threadpool(self._jobs.view, watch.job_id)
                    if view != watch.view:
                        pause_s = FIRST_PAUSE_S
                        watch.show(view)
                    if view.record.state in TERMINAL:
                        break
                await asyncio.sleep(pause_s)
                pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
        except JobNotFound:
            pass
        except Exception:
            log.exception("job %s cannot be watched; its listeners are sent away", watch.job_id)
        finally:
            # Whoever listens from now on asks again.
            if self._watches.get(watch.job_id) is watch:
                del self._watches[watch.job_id]
            watch.end()


def _require(found: int, most: int, what: str) -> None:
    if found >= most:
        raise ProblemError(ProblemKind.BUSY, f"{most} {what}.")


@contextmanager
def _counted(counts: Counter[str], owner: str) -> Iterator[None]:
    counts[owner] += 1
    try:
        yield
    finally:
        counts[owner] -= 1
        if not counts[owner]:
            del counts[owner]


class _Watch:
    """A job that somebody listens to; `changed` is set, and replaced, at each change."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.view: JobView | None = None
        self.over = False
        self.listeners = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def show(self, view: JobView) -> None:
        self.view = view
        self._wake()

    def end(self) -> None:
        self.over = True
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
