"""The records in Redis, rebuilt from their shadows whenever Redis has lost some of them."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from state.errors import JobNotFound, StoreUnavailable
from state.job_file import Shadows
from state.records import JOB_ID, JobRecord
from state.scripts import Scripts, Wiped

T = TypeVar("T")

# A server that loses its keys again and again is not there.
REBUILDS = 10


class Ledger:
    """Runs scripts as if Redis never lost anything."""

    def __init__(self, scripts: Scripts, shadows: Shadows) -> None:
        self._scripts = scripts
        self._shadows = shadows
        self._rebuilding = threading.Lock()

    def survive(self, action: Callable[[], T]) -> T:
        """Act, rebuilding first where Redis was wiped or restarted; the action must bear being repeated."""
        for _ in range(REBUILDS):
            try:
                return action()
            except Wiped:
                self.rebuild()
        raise StoreUnavailable

    def run(self, name: str, *args: str | float) -> Any:
        """Run a script that concerns no single job."""
        return self.survive(lambda: self._scripts.run(name, *args))

    def ask(self, verb: str, job_id: str, *args: str | float) -> Any:
        """Run a script on one job, which may be known on disk alone."""
        if JOB_ID.fullmatch(job_id) is None:
            raise JobNotFound
        answer = self.run(verb, job_id, *args)
        if answer == "missing" and self._shadows.restore(job_id):
            answer = self.run(verb, job_id, *args)
        if answer == "missing":
            raise JobNotFound
        return answer

    def transition(self, verb: str, job_id: str, *args: str | float) -> JobRecord | None:
        """Change a job and its shadow; None: the job is not the caller's any more."""

        def act() -> JobRecord | None:
            if self.ask(verb, job_id, *args) != "done":
                return None
            record = self._shadows.follow(job_id)
            if record is None:
                # Wiped before the shadow was written: the transition is lost, and to be made again.
                raise Wiped
            return record

        return self.survive(act)

    def catch_up(self) -> None:
        """Write the shadows that are behind, because their writer was killed or the disk was full."""
        for job_id in self._shadows.behind():
            self.survive(partial(self._shadows.follow, job_id))

    def rebuild(self) -> None:
        """Put every record on disk into Redis where Redis lacks it or has an older one."""
        with self._rebuilding:
            if self._scripts.ready():
                return
            for job_id in self._shadows.ids():
                self._shadows.restore(job_id)
            self._scripts.open()
