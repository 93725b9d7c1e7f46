"""One transition of a job: a script in `jobs/lua`, then job.json, and only then the answer."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import redis

from schemas.problem import Problem, ProblemKind
from state.data_dir import DataDir
from state.errors import JobNotFound
from state.jobs.job_file import JobFiles
from state.jobs.records import JOB_ID, JobRecord, shortened
from state.jobs.restoration import Restoration
from state.jobs.scripts import Scripts, StateLost
from state.jobs.webhooks import WebhookFiles

T = TypeVar("T")

MOST_DETAIL_BYTES = 400
MOST_ERRORS = 4
MOST_LATE_WARNINGS = 4


class Transitions:
    """What all calls of a store have in common.

    Every call may be repeated, and works when Redis was restarted or lost its data.
    """

    def __init__(
        self,
        client: redis.Redis,
        data_dir: Path,
        *,
        lease_s: float = 60,
        max_attempts: int = 3,
        send_again_after_s: float = 15,
        most_waiting: int | None = None,
        retention_s: float | None = None,
    ) -> None:
        """Connect to the server; an owner may have `most_waiting` jobs queued.

        Ended jobs may be removed after `retention_s`; None: never.
        """
        self._client = client
        # None: the jobs of all owners.
        self._owner: str | None = None
        self._paths = DataDir(data_dir)
        self._scripts = Scripts(client)
        self._lease_us = int(lease_s * 1_000_000)
        self._send_again_after_us = int(send_again_after_s * 1_000_000)
        self._max_attempts = max_attempts
        self._most_waiting = most_waiting
        self._webhooks = WebhookFiles(self._paths)
        self._retention_us = None if retention_s is None else int(retention_s * 1e6)
        self._files = JobFiles(self._paths, self._scripts)
        self._restoration = Restoration(self._paths, self._scripts, self._files, lease_us=self._lease_us)

    def of(self, owner: str) -> Self:
        """Return the jobs of one owner, for whom those of others do not exist."""
        other = copy.copy(self)
        other._owner = owner  # noqa: SLF001 - of a copy of this
        other._paths = DataDir(self._paths.root, owner)  # noqa: SLF001
        return other

    # Each call runs one of these, from its start again whenever Redis lost its data.

    def _with_restore(self, action: Callable[[], T]) -> T:
        return self._scripts.with_restore(action, self._restoration.run)

    def _run(self, name: str, *args: str | float) -> Any:
        return self._with_restore(lambda: self._scripts.run(name, *args))

    def _run_on(self, verb: str, job_id: str, *args: str | float) -> Any:
        """Run a script on one job, which may be known on disk only; the caller restores."""
        if JOB_ID.fullmatch(job_id) is None:
            raise JobNotFound
        answer = self._scripts.run(verb, job_id, *args)
        if answer == "missing" and self._files.restore(job_id):
            answer = self._scripts.run(verb, job_id, *args)
        if answer == "missing":
            raise JobNotFound
        return answer

    def _transition(self, verb: str, job_id: str, *args: str | float) -> JobRecord | None:
        """Change a job and its job.json; None: this attempt lost the job."""

        def act() -> JobRecord | None:
            if self._run_on(verb, job_id, *args) != "done":
                return None
            # If Redis lost its data before job.json was written, the transition is lost and must be repeated.
            return present(self._files.write_or_defer(job_id))

        return self._with_restore(act)

    def _end(self, verb: str, job_id: str, fence: int, *args: str | float) -> bool:
        try:
            return self._transition(verb, job_id, fence, *args) is not None
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
