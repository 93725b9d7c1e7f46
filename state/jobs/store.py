"""What the service and the workers do with jobs; `upkeep` has what the reaper does."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from schemas.job import UNFINISHED, JobState, Progress
from schemas.problem import Problem
from schemas.report import Totals
from state.checkpoints.manifest import has_files
from state.data_dir import DataDir
from state.errors import (
    CheckpointGone,
    CheckpointInUse,
    FailureStays,
    FilesLocked,
    IdempotencyMismatch,
    JobNotFailed,
    JobNotFound,
    OutOfSpace,
    RedisUnavailable,
    TooManyJobs,
    UnreadableRecord,
)
from state.files import Freed
from state.jobs.attempt_lock import has_died
from state.jobs.records import (
    Claim,
    Idempotency,
    JobCounts,
    JobPage,
    JobRecord,
    JobView,
    NewJob,
    fixed_document,
    job_counts,
    job_view,
    listed_view,
    new_job_id,
    next_cursor,
    shortened,
)
from state.jobs.transitions import late, present, short, worker_lost
from state.jobs.upkeep import JobUpkeep
from state.redis import KEY_PREFIX, RedisMemory, redis_memory, translated
from state.times import microseconds, rfc3339

DELETE_LIMIT_MS = 60_000
# Problems with a lower status are of the input.
SERVER_FAULTS = 500


class JobStore(JobUpkeep):
    """The jobs, for the service and the workers, with the reaper's half from `upkeep`."""

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
            record = self._with_restore(lambda: self._create(job_id, new, idempotency))
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
        view = self._with_restore(lambda: job_view(self._run_on("read", job_id), self._files.known(job_id)))
        if self._owner not in {None, view.record.owner}:
            raise JobNotFound
        view = self._with_expiry(view)
        if view.record.webhook is None:
            return view
        return replace(view, deliveries=self._webhooks.deliveries(job_id))

    def not_known_unfinished(self, job_ids: Sequence[str]) -> list[str]:
        """Return those that have ended, or that Redis does not know, without reading the records."""
        with translated():
            pipeline = self._client.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hget(f"{KEY_PREFIX}job:{job_id}", "state")
            states = pipeline.execute()
        return [job_id for job_id, state in zip(job_ids, states, strict=True) if state not in UNFINISHED]

    def _with_expiry(self, view: JobView) -> JobView:
        if self._retention_us is None or view.record.finished_at is None:
            return view
        return replace(view, expires_at=rfc3339(microseconds(view.record.finished_at) + self._retention_us))

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
        answer = self._run("page", index, cursor or "+inf", limit + 1)
        views = tuple(self._with_expiry(listed_view(entry)) for entry in answer)
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
        return job_counts(self._run("counts"))

    def restoring(self) -> int | None:
        """Return how many jobs the restore that runs now has put back so far; None where none runs."""
        return self._scripts.restoring()

    def redis_memory(self) -> RedisMemory:
        return redis_memory(self._client)

    def resume(self, job_id: str) -> JobRecord:
        """Queue a failed job again, on its finished layers; the caller sends the message.

        Raises `JobNotFailed`, `UnreadableRecord`, `FailureStays` if its input was at fault, `CheckpointGone`
        if it has lost it, or `TooManyJobs`.
        """
        record, token = self.get(job_id), secrets.token_hex(8)
        if not record.readable:
            raise UnreadableRecord
        if record.state == "failed" and record.error is not None and record.error.status < SERVER_FAULTS:
            raise FailureStays(record.error.detail)
        if record.state == "failed" and not self._has_input(record):
            raise CheckpointGone

        if record.webhook is not None:
            self._webhooks.mark(job_id)

        def act() -> JobRecord:
            answer = self._run_on("resume", job_id, token, self._most_waiting or "inf")
            if answer == "gone":
                raise CheckpointGone
            if answer == "full":
                raise TooManyJobs(self._most_waiting)
            if answer != "done":
                raise JobNotFailed(answer)
            return present(self._files.write_or_defer(job_id))

        resumed = self._with_restore(act)
        if record.webhook is not None:
            # Its mark may have been removed, as one of a job that had ended, before it was queued.
            self._webhooks.mark(job_id)
        return resumed

    def cancel(self, job_id: str) -> JobRecord:
        """End a queued or running job at once; its worker notices at its next heartbeat."""
        if self._owner is not None:
            self.view(job_id)  # raises if it is not theirs, which never changes
        record = self._transition("cancel", job_id)
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
        if self._run("lock_checkpoint", key, DELETE_LIMIT_MS) == "in_use":
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
            record = self._with_restore(lambda: self._claim(job_id, token))
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
        arguments = (job_id, fence, self._lease_us, document, done, int(idle_s * 1e6))
        try:
            return bool(self._with_restore(lambda: self._run_on("renew_lease", *arguments)) == "done")
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
        return self._end("finish", job_id, fence, document, single_file or "", late(warnings))

    def fail(self, job_id: str, fence: int, why: Problem) -> bool:
        """End a job because of its input."""
        return self._end("fail", job_id, fence, short(why))

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
        return self._end("retry", job_id, fence, self._max_attempts, short(why), *times)

    def release(self, job_id: str, fence: int) -> bool:
        """Queue a job again because the worker stops: the attempt does not count."""
        return self._end("release", job_id, fence)

    def give_back_orphans(self, host: str) -> tuple[str, ...]:
        """Queue jobs again whose attempts were of processes of this host that have died; return their ids.

        Those of other hosts are left to their leases: not every shared file system shows locks between hosts.
        """
        lost = worker_lost(self._max_attempts)
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
        lost = worker_lost(self._max_attempts).model_dump_json()
        answer = self._run_on("claim", job_id, token, self._lease_us, self._max_attempts, lost)
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

    def _create(self, job_id: str, new: NewJob, idempotency: Idempotency | None) -> JobRecord:
        digest, fingerprint = (idempotency.digest, idempotency.fingerprint) if idempotency else ("", "")
        fixed = fixed_document(new, job_id, idempotency)
        with self._files.lock(job_id):
            named = [word for reference in new.references.items() for word in reference]
            create = (
                "create",
                job_id,
                new.checkpoint,
                digest,
                fingerprint,
                new.owner,
                self._most_waiting or "inf",
                "1" if new.owns_checkpoint else "",
            )
            answer = str(self._scripts.run(*create, *named))
            if answer == "created":
                return self._make_durable(job_id, new, fixed)
        if answer == "conflict":
            raise IdempotencyMismatch
        if answer == "gone":
            raise CheckpointGone
        if answer == "full":
            raise TooManyJobs(self._most_waiting)
        return present(self._files.write(answer.removeprefix("replay:")))

    def _has_input(self, job: NewJob) -> bool:
        """Whether the checkpoints that a job needs are what they were when it was planned."""
        needed = [(job.checkpoint, job.files)]
        needed += [(job.references[field], files) for field, files in job.reference_files.given()]
        paths = DataDir(self._paths.root, job.owner)
        return all(has_files(paths, name, files) for name, files in needed)

    def _make_durable(self, job_id: str, new: NewJob, fixed: Mapping[str, Any]) -> JobRecord:
        try:
            if not self._has_input(new):
                # Deleted or replaced after the job was planned and before it was registered.
                raise CheckpointGone  # noqa: TRY301 - undone like every other failure
            record = present(self._files.create_locked(job_id, fixed))
            self._files.note_created(job_id)
        except BaseException:
            self._files.undo_locked(job_id)
            raise
        return record
