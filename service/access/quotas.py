"""Quotas: how much each owner may store, have waiting, and upload at a time. Without keys, all share one."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from schemas.problem import ProblemKind
from service.errors import ProblemError
from service.settings import Settings
from state.errors import TooManyJobs
from state.files import Freed
from state.jobs.store import JobStore

log = logging.getLogger("eckart.service")

# A sum reads every manifest and every result's folder of an owner. So it is kept, what arrives is added and
# what is deleted taken off. After this time it is made again beside the requests, for what others did.
SUM_FOR_S = 60.0
# The clock of a shared disk may be behind by so much.
SKEW_S = 5.0


@dataclass(slots=True)
class _Sum:
    """What an owner has stored, as far as is known."""

    nbytes: int
    began_s: float
    due_s: float
    # Whether something was deleted, or counted besides, that may or may not be in it.
    too_large: bool = False


class Quotas:
    """Checks the quotas of all owners, in this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._uploads: Counter[str] = Counter()
        self._stored: dict[str, _Sum] = {}
        self._deletions: Counter[str] = Counter()
        self._summing: set[str] = set()
        # What uploads under way have sent and no sum finds.
        self._arriving: Counter[str] = Counter()
        # What has arrived since this process began.
        self._arrived: Counter[str] = Counter()

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
                self._stored[owner].nbytes -= lost

    def _add(self, owner: str, nbytes: int, *, unseen: bool) -> None:
        most = self._settings.owner_bytes
        with self._lock:
            self._arrived[owner] += nbytes
            if unseen:
                self._arriving[owner] += nbytes
            if most is None or owner not in self._stored:
                return
            self._stored[owner].nbytes += nbytes
            known = self._stored[owner].nbytes
        if known > most:
            raise too_many_bytes(most)

    def require_jobs(self, jobs: JobStore) -> None:
        """Refuse a job before its files are sent; `JobStore.create` counts again when they have come."""
        if jobs.waiting() >= self._settings.owner_jobs:
            raise TooManyJobs(self._settings.owner_jobs)

    def left_bytes(
        self, owner: str, stored_bytes: Callable[[], int], *, needed: int | None = None
    ) -> int | None:
        """Return how many bytes more an owner may store; None: any number.

        `needed` says how many shall be; None: that is not known yet.
        """
        most = self._settings.owner_bytes
        if most is None:
            return None
        with self._lock:
            known = self._stored.get(owner)
        if known is None:
            return most - self._sum(owner, stored_bytes)
        left = most - known.nbytes
        if known.too_large and (needed is None or needed > left):
            return most - self._sum(owner, stored_bytes)
        if time.monotonic() > known.due_s:
            self._sum_beside(owner, stored_bytes)
        return left

    def _sum(self, owner: str, stored_bytes: Callable[[], int]) -> int:
        with self._lock:
            arriving, arrived, deletions = self._arriving[owner], self._arrived[owner], self._deletions[owner]
        began_s, due_s = time.time(), time.monotonic() + SUM_FOR_S
        stored = stored_bytes()
        with self._lock:
            # What arrived or ended meanwhile may or may not be in the sum, and counts in any case.
            meanwhile = self._arrived[owner] - arrived
            known = stored + arriving + meanwhile
            deleted = self._deletions[owner] != deletions
            ended = self._arriving[owner] < arriving
            self._stored[owner] = _Sum(known, began_s, due_s, too_large=deleted or ended or meanwhile > 0)
        return known

    def _sum_beside(self, owner: str, stored_bytes: Callable[[], int]) -> None:
        """Sum again in a thread, unless one does."""
        with self._lock:
            if owner in self._summing:
                return
            self._summing.add(owner)

        def run() -> None:
            try:
                self._sum(owner, stored_bytes)
            except Exception:
                log.exception("what an owner has stored cannot be summed; a later upload tries again")
            finally:
                with self._lock:
                    self._summing.discard(owner)

        threading.Thread(target=run, name="sum", daemon=True).start()

    def deleted(self, owner: str, freed: Freed) -> None:
        """Take off what was deleted, if it was there long enough to be in the sum."""
        with self._lock:
            self._deletions[owner] += 1
            known = self._stored.get(owner)
            if known is None:
                return
            if freed.since_s < known.began_s - SKEW_S:
                known.nbytes -= freed.nbytes
            else:
                known.too_large = True


def over_quota(found: str, advice: str) -> ProblemError:
    return ProblemError(ProblemKind.OVER_QUOTA, values={"found": found, "advice": advice})


def too_many_bytes(most: int) -> ProblemError:
    return over_quota(
        f"more than the {most} bytes that you may store would be stored", "delete checkpoints or jobs"
    )
