"""One transition of a job: a script in `jobs/lua`, then job.json, and only then the answer."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import redis

from schemas.problem import Problem, ProblemKind
from state.data_dir import DataDir
from state.errors import JobNotFound
from state.jobs.job_file import JobFiles
from state.jobs.records import JOB_ID, JobRecord, shortened
from state.jobs.restoration import Restoration
from state.jobs.scripts import Scripts, StateLost

T = TypeVar("T")

MOST_DETAIL_BYTES = 400
MOST_ERRORS = 4
MOST_LATE_WARNINGS = 4


@dataclass(frozen=True, slots=True)
class JobLimits:
    """How long and how often a job is tried, how many of an owner may wait, and how long jobs are kept."""

    lease_us: int
    max_attempts: int
    send_again_after_us: int
    most_waiting: int | None
    # None: for ever.
    retention_us: int | None


class Transitions:
    """Changes the jobs of all owners. Each call may be repeated, and works when Redis lost its data."""

    def __init__(self, client: redis.Redis, paths: DataDir, limits: JobLimits) -> None:
        self.client = client
        self.paths = paths
        self.limits = limits
        self.scripts = Scripts(client)
        self.files = JobFiles(paths, self.scripts)
        self._restoration = Restoration(paths, self.scripts, self.files, lease_us=limits.lease_us)

    def with_restore(self, action: Callable[[], T]) -> T:
        """Run this, from its start again whenever Redis lost its data."""
        return self.scripts.with_restore(action, self._restoration.run)

    def run(self, name: str, *args: str | float) -> Any:
        """Run a script in that way."""
        return self.with_restore(lambda: self.scripts.run(name, *args))

    def run_on(self, verb: str, job_id: str, *args: str | float) -> Any:
        """Run a script on one job, which may be known on disk only; the caller restores."""
        if JOB_ID.fullmatch(job_id) is None:
            raise JobNotFound
        answer = self.scripts.run(verb, job_id, *args)
        if answer == "missing" and self.files.restore(job_id):
            answer = self.scripts.run(verb, job_id, *args)
        if answer == "missing":
            raise JobNotFound
        return answer

    def transition(self, verb: str, job_id: str, *args: str | float) -> JobRecord | None:
        """Change a job and its job.json; None: this attempt lost the job."""

        def act() -> JobRecord | None:
            if self.run_on(verb, job_id, *args) != "done":
                return None
            # If Redis lost its data before job.json was written, the transition is lost and must be repeated.
            return present(self.files.write_or_defer(job_id))

        return self.with_restore(act)

    def end(self, verb: str, job_id: str, fence: int, *args: str | float) -> bool:
        """End an attempt; False: it lost the job."""
        try:
            return self.transition(verb, job_id, fence, *args) is not None
        except JobNotFound:
            return False


def present(record: JobRecord | None) -> JobRecord:
    if record is None:
        # Redis lost it, or the process that created it undid that, before it was on disk.
        raise StateLost
    return record


def late(warnings: Sequence[str]) -> str:
    """Return the warnings of the work as they are kept, or '' if there are none."""
    kept = [shortened(text, MOST_DETAIL_BYTES) for text in warnings[:MOST_LATE_WARNINGS]]
    return json.dumps(kept, ensure_ascii=False) if kept else ""


def worker_lost(attempts: int) -> Problem:
    """Return the problem of a job whose last attempt lost its worker."""
    kind = ProblemKind.WORKER_LOST
    return kind.problem(kind.text(attempts=attempts))


def short(why: Problem) -> str:
    """Return a problem as it is kept: its detail may name many tensors, and is shown in each list."""
    errors = [each.model_copy(update={"detail": shortened(each.detail)}) for each in why.errors[:MOST_ERRORS]]
    short = {"detail": shortened(why.detail, MOST_DETAIL_BYTES), "errors": tuple(errors)}
    return why.model_copy(update=short).model_dump_json()
