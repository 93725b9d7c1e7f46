"""Quotas: how much each owner may store, have waiting, and upload at a time. Without keys, all share one."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from schemas.problem import ProblemKind
from service.errors import ProblemError
from service.settings import Settings
from state.errors import TooManyJobs
from state.jobs.store import JobStore

# A sum reads every manifest and every result's folder of an owner: until then it is kept, and added to.
SUM_FOR_S = 60.0


class Quotas:
    """Checks the quotas of all owners, in this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._uploads: Counter[str] = Counter()
        self._stored: dict[str, tuple[float, int]] = {}
        # What uploads under way have sent and no sum finds.
        self._arriving: Counter[str] = Counter()

    @contextmanager
    def uploading(self, owner: str, *, kept: bool = False) -> Iterator[Callable[[int], None]]:
        """Count an upload while it is under way, or refuse it; what this gives counts the bytes that arrive.

        All uploads of an owner share what is left, so those that began together cannot each take it.
        `kept`: what has arrived stays if the upload fails, and sums find it.
        """
        self._begin(owner)
        unseen = 0

        def count(nbytes: int) -> None:
            nonlocal unseen
            unseen += 0 if kept else nbytes
            self._add(owner, nbytes, unseen=not kept)

        try:
            yield count
        except BaseException:
            self._end(owner, unseen, lost=unseen)
            raise
        self._end(owner, unseen, lost=0)

    def _begin(self, owner: str) -> None:
        most = self._settings.owner_uploads
        with self._lock:
            if self._uploads[owner] >= most:
                raise over_quota(f"{most} uploads are under way already", "wait for one to end")
            self._uploads[owner] += 1

    def _end(self, owner: str, unseen: int, *, lost: int) -> None:
        with self._lock:
            self._uploads[owner] -= 1
            self._arriving[owner] -= unseen
            if not self._uploads[owner]:
                del self._uploads[owner], self._arriving[owner]
            if lost and owner in self._stored:
                at, known = self._stored[owner]
                self._stored[owner] = at, known - lost

    def _add(self, owner: str, nbytes: int, *, unseen: bool) -> None:
        most = self._settings.owner_bytes
        with self._lock:
            if unseen:
                self._arriving[owner] += nbytes
            if most is None or owner not in self._stored:
                return
            at, known = self._stored[owner]
            self._stored[owner] = at, known + nbytes
        if known + nbytes > most:
            raise too_many_bytes(most)

    def require_jobs(self, jobs: JobStore) -> None:
        """Refuse a job before its files are sent; `JobStore.create` counts again when they have come."""
        if jobs.waiting() >= self._settings.owner_jobs:
            raise TooManyJobs(self._settings.owner_jobs)

    def left_bytes(self, owner: str, stored_bytes: Callable[[], int]) -> int | None:
        """Return how many bytes more an owner may store; None: any number."""
        most = self._settings.owner_bytes
        if most is None:
            return None
        with self._lock:
            at, known = self._stored.get(owner, (0.0, 0))
            arriving = self._arriving[owner]
        if not at or time.monotonic() > at + SUM_FOR_S:
            stored = stored_bytes()
            with self._lock:
                # An upload that ended meanwhile may or may not be in the sum, and counts in any case.
                known = stored + max(arriving, self._arriving[owner])
                self._stored[owner] = time.monotonic(), known
        return most - known

    def forget(self, owner: str) -> None:
        """Sum again at the next upload, since something was deleted; those under way go by the old sum."""
        with self._lock:
            _, known = self._stored.get(owner, (0.0, 0))
            self._stored[owner] = 0.0, known


def over_quota(found: str, advice: str) -> ProblemError:
    return ProblemError(ProblemKind.OVER_QUOTA, values={"found": found, "advice": advice})


def too_many_bytes(most: int) -> ProblemError:
    return over_quota(
        f"more than the {most} bytes that you may store would be stored", "delete checkpoints or jobs"
    )
