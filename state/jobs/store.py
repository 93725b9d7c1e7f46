"""What the service and the workers do with jobs; `upkeep` has what the reaper does."""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import redis

from schemas.job import TERMINAL, UNFINISHED, JobState, Progress
from schemas.problem import Problem
from schemas.report import Totals
from state.data_dir import DataDir
from state.errors import (
    CheckpointGone,
    CheckpointInUse,
    FilesLocked,
    IdempotencyMismatch,
    JobNotFound,
    OutOfSpace,
    RedisUnavailable,
    TooManyJobs,
)
from state.files import Freed
from state.jobs.attempt_lock import has_died
from state.jobs.creation import create_job
from state.jobs.records import (
    Claim,
    Idempotency,
    JobCounts,
    JobPage,
    JobRecord,
    JobView,
    NewJob,
    job_counts,
    job_view,
    listed_view,
    new_job_id,
    next_cursor,
    shortened,
)
from state.jobs.resumption import check_resumable, resume_job
from state.jobs.transitions import JobLimits, Transitions, late, present, short, worker_lost
from state.jobs.upkeep import JobUpkeep
from state.jobs.webhooks import WebhookFiles
from state.redis import KEY_PREFIX, RedisMemory, redis_memory, translated
from state.times import microseconds, rfc3339

DELETE_LIMIT_MS = 60_000
WRITE_WAIT_S = 1.0


class JobStore:
    """The jobs of one owner or of all, for the service and the workers.

    `upkeep` is the reaper's work on all jobs, whosever this is.
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
        self._limits = JobLimits(
            int(lease_s * 1e6),
            max_attempts,
            int(send_again_after_s * 1e6),
            most_waiting,
            None if retention_s is None else int(retention_s * 1e6),
        )
        # None: the jobs of all owners.
        self._owner: str | None = None
        self._client = client
        self._paths = DataDir(data_dir)
        self._transitions = Transitions(client, self._paths, self._limits)
        self._files = self._transitions.files
        self._webhooks = WebhookFiles(self._paths)
        self.upkeep = JobUpkeep(self._transitions)

    def of(self, owner: str) -> Self:
        """Return the jobs of one owner, for whom those of others do not exist."""
        other = copy.copy(self)
        other._owner = owner  # noqa: SLF001 - of a copy of this
        other._paths = DataDir(self._paths.root, owner)  # noqa: SLF001
        return other

    # For the service.

    def create(self, new: NewJob, *, idempotency: Idempotency | None = None) -> JobRecord:
        """Create a job, or return the one that the same idempotency key created before.

        The job is registered in Redis, which keeps its checkpoint from deletion, then written to job.json,
        then returned. Where this process dies in between, a sweep removes it. The caller sends the message
        afterwards; where that fails, the next sweep does.
        """
        job_id = new_job_id()
        if self._owner:
            new = new.model_copy(update={"owner": self._owner})
            # No key of a client holds a line break.
            scoped = f"{self._owner}\n{idempotency.key}" if idempotency else ""
            idempotency = idempotency and idempotency.model_copy(update={"key": scoped})
        if new.webhook is not None:
            self._webhooks.mark(job_id)
        try:
            record = self._transitions.with_restore(
                lambda: create_job(self._transitions, job_id, new, idempotency)
            )
        except (IdempotencyMismatch, CheckpointGone, TooManyJobs):
            self._webhooks.unmark(job_id)
            raise
        if record.id != job_id:
            self._webhooks.unmark(job_id)
        return record

    def get(self, job_id: str) -> JobRecord:
        """Return the record, or raise `JobNotFound`."""
        return self.view(job_id).record

    def view(self, job_id: str) -> JobView:
        """Return the record with progress and queue position, which change too often to be part of it."""

        def read() -> JobView:
            return self._lasting(
                job_view(self._transitions.run_on("read", job_id), self._files.known(job_id))
            )

        view = self._transitions.with_restore(read)
        if self._owner not in {None, view.record.owner}:
            raise JobNotFound
        view = self._with_expiry(view)
        if view.record.webhook is None:
            return view
        return replace(view, deliveries=self._webhooks.deliveries(job_id))

    def _lasting(self, view: JobView) -> JobView:
        """Return a view when its end is on disk: a Redis that loses its data must not take it back."""
        if view.record.state in TERMINAL and not view.on_disk:
            # Where the disk is full, the next sweep tries again.
            with suppress(OSError, OutOfSpace, FilesLocked):
                present(self._files.write(view.record.id, wait_s=WRITE_WAIT_S))
        return view

    def not_known_unfinished(self, job_ids: Sequence[str]) -> list[str]:
        """Return those that have ended, or that Redis does not know, without reading the records."""
        with translated():
            pipeline = self._client.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hget(f"{KEY_PREFIX}job:{job_id}", "state")
            states = pipeline.execute()
        return [job_id for job_id, state in zip(job_ids, states, strict=True) if state not in UNFINISHED]

    def _with_expiry(self, view: JobView) -> JobView:
        if self._limits.retention_us is None or view.record.finished_at is None:
            return view
        return replace(
            view, expires_at=rfc3339(microseconds(view.record.finished_at) + self._limits.retention_us)
        )

    def list(
        self,
        state: JobState | None = None,
        *,
        checkpoint: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        """Return a page of jobs, newest first; `cursor` is the `next_cursor` of the page before.

        `checkpoint`: only jobs on that one of the owner's.
        """
        index = (state or "all") + ("" if self._owner is None else f"@{self._owner}")
        if checkpoint is not None:
            assert self._owner is not None
            index += f"/{checkpoint}"

        def read() -> tuple[JobView, ...]:
            answer = self._transitions.scripts.run("page", index, cursor or "+inf", limit + 1)
            return tuple(self._lasting(listed_view(entry)) for entry in answer)

        views = tuple(map(self._with_expiry, self._transitions.with_restore(read)))
        return JobPage(views[:limit], next_cursor(views[limit:]))

    def waiting(self) -> int:
        """Return how many jobs of the owner are queued."""
        with translated():
            return int(self._client.zcard(f"{KEY_PREFIX}jobs:queued@{self._owner or ''}"))

    def result_bytes(self) -> int:
        """Return the size of all result files of the owner."""
        with translated():
            ids: Any = self._client.zrange(f"{KEY_PREFIX}jobs:succeeded@{self._owner or ''}", 0, -1)
        return sum(map(self._result_bytes, ids))

    def _result_bytes(self, job_id: str) -> int:
        with suppress(FileNotFoundError):  # deleted meanwhile
            return sum(path.stat().st_size for path in self._paths.job(job_id).glob("result-*/*"))
        return 0

    def counts(self) -> JobCounts:
        return job_counts(self._transitions.run("counts"))

    def restoring(self) -> int | None:
        """Return how many jobs the restore that runs now has put back so far; None where none runs."""
        return self._transitions.scripts.restoring()

    def redis_memory(self) -> RedisMemory:
        return redis_memory(self._client)

    def resume(self, job_id: str) -> JobRecord:
        """Queue a failed job again, on its finished layers; the caller sends the message.

        Raises `JobNotFailed`, `UnreadableRecord`, `FailureStays` if its input was at fault, `CheckpointGone`
        if it has lost it, or `TooManyJobs`.
        """
        record = self.get(job_id)
        check_resumable(self._paths.root, record)
        if record.webhook is not None:
            self._webhooks.mark(job_id)
        resumed = resume_job(self._transitions, job_id)
        if record.webhook is not None:
            # Its mark may have been removed, as one of a job that had ended, before it was queued.
            self._webhooks.mark(job_id)
        return resumed

    def cancel(self, job_id: str) -> JobRecord:
        """End a queued or running job at once; its worker notices at its next heartbeat."""
        if self._owner is not None:
            self.view(job_id)  # raises if it is not theirs, which never changes
        record = self._transitions.transition("cancel", job_id)
        assert record is not None  # a cancel needs no fence
        return record

    def delete(self, job_id: str) -> Freed:
        """Cancel a job and remove all its files and keys; return what its result had."""
        ended_at = self.cancel(job_id).finished_at
        freed = Freed(self._result_bytes(job_id), microseconds(ended_at) / 1e6 if ended_at else time.time())
        self._files.delete(job_id)
        self._webhooks.unmark(job_id)
        return freed

    @contextmanager
    def locked_for_deletion(self, checkpoint_id: str) -> Iterator[None]:
        """Keep new jobs off a checkpoint while it is deleted, or raise `CheckpointInUse`."""
        key = self._paths.key(checkpoint_id)
        if self._transitions.run("lock_checkpoint", key, DELETE_LIMIT_MS) == "in_use":
            raise CheckpointInUse
        try:
            yield
        finally:
            # The checkpoint is deleted by now, so a mark that cannot be removed may expire by itself.
            with suppress(RedisUnavailable), translated():
                self._client.delete(f"{KEY_PREFIX}deleting:{key}")

    # For the worker.

    def claim(self, job_id: str, token: str) -> Claim | None:
        """Take a job under a new fence; None where it has ended, is leased, is gone, or is out of attempts.

        The same token (`new_token`) is the same claim: repeat it with that after `RedisUnavailable`.
        """
        try:
            record = self._transitions.with_restore(lambda: self._claim(job_id, token))
        except JobNotFound:
            return None
        return Claim(record, record.fence) if record and record.claim_token == token else None

    def renew_lease(
        self, job_id: str, fence: int, progress: Progress | None = None, *, idle_s: float = 0.0
    ) -> bool:
        """Renew the lease; False: this attempt lost the job, and must stop.

        `idle_s` is the time since the attempt's last step began.
        """
        if progress and progress.layer:
            progress = progress.model_copy(update={"layer": shortened(progress.layer)})
        document, done = (progress.model_dump_json(), progress.fraction) if progress else ("", 0.0)
        arguments = (job_id, fence, self._limits.lease_us, document, done, int(idle_s * 1e6))
        try:
            return bool(
                self._transitions.with_restore(lambda: self._transitions.run_on("renew_lease", *arguments))
                == "done"
            )
        except JobNotFound:
            return False

    def finish(
        self,
        job_id: str,
        fence: int,
        summary: Totals,
        single_file: str | None = None,
        *,
        warnings: Sequence[str] = (),
    ) -> bool:
        """Publish a result whose files are durable and in place; False: this attempt lost the job.

        `warnings` are those that came with the work; some are kept, shortened.
        """
        document = summary.model_dump_json()
        return self._transitions.end("finish", job_id, fence, document, single_file or "", late(warnings))

    def fail(self, job_id: str, fence: int, why: Problem) -> bool:
        """End a job because of its input."""
        return self._transitions.end("fail", job_id, fence, short(why))

    def retry(
        self,
        job_id: str,
        fence: int,
        why: Problem,
        *,
        pause_s: float = 0.0,
        uncounted_for_s: float | None = None,
    ) -> bool:
        """Queue a job again, after a pause, because of trouble on this machine.

        It fails if no attempts are left.
        With `uncounted_for_s` the attempt does not count, until such trouble has lasted so long.
        """
        uncounted = "" if uncounted_for_s is None else int(uncounted_for_s * 1e6)
        times = (int(pause_s * 1e6), uncounted)
        return self._transitions.end("retry", job_id, fence, self._limits.max_attempts, short(why), *times)

    def release(self, job_id: str, fence: int) -> bool:
        """Queue a job again because the worker stops: the attempt does not count."""
        return self._transitions.end("release", job_id, fence)

    def give_back_orphans(self, host: str) -> tuple[str, ...]:
        """Queue jobs again whose attempts were of processes of this host that have died; return their ids.

        Those of other hosts are left to their leases: not every shared file system shows locks between hosts.
        """
        lost = worker_lost(self._limits.max_attempts)
        found = []
        cursor: str | None = None
        while True:
            page = self.list("running", limit=200, cursor=cursor)
            for record in (view.record for view in page.jobs):
                ours = (record.claim_token or "").startswith(f"{host}:")
                if ours and has_died(self._paths, record.id, record.fence):
                    self.retry(record.id, record.fence, lost)
                    found.append(record.id)
            cursor = page.next_cursor
            if cursor is None:
                return tuple(found)

    def _claim(self, job_id: str, token: str) -> JobRecord | None:
        lost = worker_lost(self._limits.max_attempts).model_dump_json()
        answer = self._transitions.run_on(
            "claim", job_id, token, self._limits.lease_us, self._limits.max_attempts, lost
        )
        if answer == "refused":
            return None
        if answer == "failed":
            return self._files.write_or_defer(job_id)
        try:
            # The fence must be on disk before anyone works under it: a lost Redis must not issue it again.
            return self._files.write(job_id)
        except (OSError, OutOfSpace, FilesLocked):
            self._unclaim(job_id, token)
            raise

    def _unclaim(self, job_id: str, token: str) -> None:
        """Queue a job again that nobody can work on for now; the next sweep sends its message."""
        record = self.get(job_id)
        if record.claim_token == token:
            self.release(job_id, record.fence)
