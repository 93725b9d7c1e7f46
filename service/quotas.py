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
from state.jobs import JobStore

# A sum reads every manifest and every result's folder of an owner: until then it is kept, and added to.
SUM_FOR_S = 60.0


class Quotas:
    """Checks the quotas of all owners, in this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._uploads: Counter[str] = Counter()
        self._stored: dict[str, tuple[float, int]] = {}

    @contextmanager
    def uploading(self, owner: str) -> Iterator[None]:
        """Count an upload while it is under way, or refuse it."""
        most = self._settings.owner_uploads
        with self._lock:
            if self._uploads[owner] >= most:
                raise over_quota(f"{most} uploads are under way already", "wait for one to end")
            self._uploads[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._uploads[owner] -= 1
                if not self._uploads[owner]:
                    del self._uploads[owner]

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
        if not at or time.monotonic() > at + SUM_FOR_S:
            known = stored_bytes()
            with self._lock:
                self._stored[owner] = time.monotonic(), known
        return most - known

    def add(self, owner: str, nbytes: int) -> None:
        """Count bytes that were received since the last sum."""
        with self._lock:
            if owner in self._stored:
                at, known = self._stored[owner]
                self._stored[owner] = at, known + nbytes

    def forget(self, owner: str) -> None:
        """Sum again, since something was deleted."""
        with self._lock:
            self._stored.pop(owner, None)


def over_quota(found: str, advice: str) -> ProblemError:
    return ProblemError(ProblemKind.OVER_QUOTA, values={"found": found, "advice": advice})


def too_many_bytes(most: int) -> ProblemError:
    return over_quota(
        f"more than the {most} bytes that you may store would be stored", "delete checkpoints or jobs"
    )
