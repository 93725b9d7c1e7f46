"""The records in Redis, rebuilt from their shadows whenever Redis has lost some of them."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from state.errors import JobNotFound, StoreUnavailable
from state.job_file import JobFiles
from state.records import JOB_ID, JobRecord
from state.scripts import Scripts, StateLost

T = TypeVar("T")

# A server that loses its keys again and again is not there.
REBUILDS = 10


class Recovery:
    """Runs scripts as if Redis never lost anything."""

    def __init__(self, scripts: Scripts, job_files: JobFiles) -> None:
        self._scripts = scripts
        self._job_files = job_files
        self._rebuilding = threading.Lock()

    def with_recovery(self, action: Callable[[], T]) -> T:
        """Act, rebuilding first where Redis was wiped or restarted; the action must bear being repeated."""
        for _ in range(REBUILDS):
            try:
                return action()
            except StateLost:
                self.rebuild()
        raise StoreUnavailable

    def run(self, name: str, *args: str | float) -> Any:
        """Run a script that concerns no single job."""
        return self.with_recovery(lambda: self._scripts.run(name, *args))

    def ask(self, verb: str, job_id: str, *args: str | float) -> Any:
        """Run a script on one job, which may be known on disk alone."""
        if JOB_ID.fullmatch(job_id) is None:
            raise JobNotFound
        answer = self.run(verb, job_id, *args)
        if answer == "missing" and self._job_files.restore(job_id):
            answer = self.run(verb, job_id, *args)
        if answer == "missing":
            raise JobNotFound
        return answer

    def transition(self, verb: str, job_id: str, *args: str | float) -> JobRecord | None:
        """Change a job and its shadow; None: the job is not the caller's any more."""

        def act() -> JobRecord | None:
            if self.ask(verb, job_id, *args) != "done":
                return None
            record = self._job_files.write_or_defer(job_id)
            if record is None:
                # Wiped before the shadow was written: the transition is lost, and to be made again.
                raise StateLost
            return record

        return self.with_recovery(act)

    def write_dirty(self) -> None:
        """Write the shadows that are behind, because their writer was killed or the disk was full."""
        for job_id in self._job_files.dirty():
            self.with_recovery(partial(self._job_files.write_or_defer, job_id))

    def rebuild(self) -> None:
        """Put every record on disk into Redis where Redis lacks it or has an older one."""
        with self._rebuilding:
            if self._scripts.ready():
                return
            for job_id in self._job_files.ids():
                self._job_files.restore(job_id)
            self._scripts.open()
