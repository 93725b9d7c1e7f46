"""Accepting a job: known first, so that its checkpoint stays, then durable, and only then answered."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from schemas.job import JobState, Progress
from schemas.problem import Problem, problem
from schemas.report import Totals
from state.checkpoints import has_files
from state.data_dir import DataDir
from state.errors import (
    BadCursor,
    CheckpointGone,
    CheckpointInUse,
    IdempotencyMismatch,
    JobNotFound,
    OutOfSpace,
    StoreUnavailable,
)
from state.files import move_to_trash, purge
from state.job_file import JobFiles
from state.records import (
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
    new_job_id,
    next_cursor,
)
from state.recovery import Recovery
from state.redis import QUEUE_KEY, translated
from state.scripts import PREFIX, Scripts, StateLost


class Acceptance:
    """Makes jobs, each on disk before anyone is told of it; raises `Wiped` where it is to be tried again."""

    def __init__(self, paths: DataDir, scripts: Scripts, job_files: JobFiles) -> None:
        self._paths = paths
        self._scripts = scripts
        self._job_files = job_files

    def accept(self, job_id: str, new: NewJob, idempotency: Idempotency | None) -> JobRecord:
        """Make a job under a fresh id, or return the one that the same key has made before."""
        digest, fingerprint = (idempotency.digest, idempotency.fingerprint) if idempotency else ("", "")
        fixed = fixed_document(new, job_id, idempotency)
        with self._job_files.lock(job_id):
            needed = (new.checkpoint, new.spec.calibration or "")
            answer = str(self._scripts.run("create", job_id, *needed, digest, fingerprint, fixed))
            if answer == "created":
                return self._make_durable(job_id, new)
        if answer == "conflict":
            raise IdempotencyMismatch
        if answer == "gone":
            raise CheckpointGone
        return _present(self._job_files.write(answer.removeprefix("replay:")))

    def _make_durable(self, job_id: str, new: NewJob) -> JobRecord:
        try:
            calibration = new.spec.calibration
            if not has_files(self._paths, new.checkpoint, new.files) or (
                calibration is not None and not has_files(self._paths, calibration, new.calibration_files)
            ):
                # Deleted or replaced after it was planned on and before the job was known.
                raise CheckpointGone  # noqa: TRY301 - it undoes what is undone for every other reason
            return _present(self._job_files.write_locked(job_id))
        except BaseException:
            self._undo(job_id)
            raise

    def _undo(self, job_id: str) -> None:
        try:
            purge(move_to_trash(self._paths.job(job_id), self._paths.trash))
        finally:
            self._scripts.run_always("delete", job_id)


def _present(record: JobRecord | None) -> JobRecord:
    if record is None:
        # Wiped, or undone by who made it, before it was on disk.
        raise StateLost
    return record


SWEEP_LIMIT_MS = 30_000
DELETE_LIMIT_MS = 60_000


def worker_lost(attempts: int) -> str:
    """Say why a job fails whose workers have all vanished."""
    return problem(
        "worker-lost",
        "The worker was lost",
        500,
        f"Each of the {attempts} attempts ended without a word from its worker, which may lack memory; "
        "give it more, or send the job again.",
    ).model_dump_json()


class JobStore:
    """All that can happen to a job; every call bears being repeated, and a wiped or restarted Redis."""

    def __init__(
        self,
        client: redis.Redis,
        data_dir: Path,
        *,
        lease_s: float = 60,
        max_attempts: int = 3,
        resend_after_s: float = 15,
    ) -> None:
        self._client = client
        self._paths = DataDir(data_dir)
        self._scripts = Scripts(client)
        self._lease_us = int(lease_s * 1_000_000)
        self._resend_after_us = int(resend_after_s * 1_000_000)
        self._max_attempts = max_attempts
        self._job_files = JobFiles(self._paths, self._scripts, lease_us=self._lease_us)
        self._recovery = Recovery(self._scripts, self._job_files)
        self._acceptance = Acceptance(self._paths, self._scripts, self._job_files)

    # From the door's side.

    def create(self, new: NewJob, *, idempotency: Idempotency | None = None) -> JobRecord:
        """Accept a job durably, or return the one that the same key has made before.

        The caller sends the message afterwards; where that fails, the next sweep does.
        """
        job_id = new_job_id()
        return self._recovery.with_recovery(lambda: self._acceptance.accept(job_id, new, idempotency))

    def get(self, job_id: str) -> JobRecord:
        """Return the record, or raise `JobNotFound`."""
        return self.view(job_id).record

    def view(self, job_id: str) -> JobView:
        """Return the record with what changes too often to be part of it."""
        return job_view(self._recovery.ask("read", job_id))

    def list(self, state: JobState | None = None, *, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Return a page of jobs, newest first; `cursor` is where the page before ended."""
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 16):
            raise BadCursor
        answer = self._recovery.run("page", state or "all", cursor or "+inf", limit + 1)
        views = tuple(job_view(entry) for entry in answer)
        return JobPage(views[:limit], next_cursor(views[limit:]))

    def counts(self) -> JobCounts:
        """Count the jobs by state."""
        return job_counts(self._recovery.run("counts"))

    def cancel(self, job_id: str) -> JobRecord:
        """End a queued or running job at once; its worker notices at its next heartbeat."""
        record = self._recovery.transition("cancel", job_id)
        assert record is not None  # a cancel needs no fence
        return record

    def delete(self, job_id: str) -> None:
        """Cancel a job and remove every trace of it."""
        self.cancel(job_id)
        self._job_files.delete(job_id)

    @contextmanager
    def locked_for_deletion(self, checkpoint_id: str) -> Iterator[None]:
        """Keep new jobs off a checkpoint while it is deleted, or raise `CheckpointInUse`."""
        if self._recovery.run("lock_checkpoint", checkpoint_id, DELETE_LIMIT_MS) == "in_use":
            raise CheckpointInUse
        try:
            yield
        finally:
            # The checkpoint is gone by now, and the mark goes by itself.
            with suppress(StoreUnavailable), translated():
                self._client.delete(f"{PREFIX}deleting:{checkpoint_id}")

    # From the worker's side.

    def claim(self, job_id: str, token: str) -> Claim | None:
        """Take a job under a new fence; None: it has ended, is someone's, is gone, or is out of attempts.

        The same token (`new_token`) is the same claim: repeat it with that after `StoreUnavailable`.
        """
        try:
            record = self._recovery.with_recovery(lambda: self._claim(job_id, token))
        except JobNotFound:
            return None
        return Claim(record, record.fence) if record and record.worker == token else None

    def heartbeat(self, job_id: str, fence: int, progress: Progress | None = None) -> bool:
        """Renew the lease; False: the job is not this attempt's any more, and the attempt must stop."""
        document = progress.model_dump_json() if progress else ""
        try:
            return bool(self._recovery.ask("heartbeat", job_id, fence, self._lease_us, document) == "done")
        except JobNotFound:
            return False

    def finish(self, job_id: str, fence: int, summary: Totals, single_file: str | None = None) -> bool:
        """Publish a result that lies durably in its place; False: the job is not this attempt's any more."""
        return self._end("finish", job_id, fence, summary.model_dump_json(), single_file or "")

    def fail(self, job_id: str, fence: int, why: Problem) -> bool:
        """End a job for a reason of its input."""
        return self._end("fail", job_id, fence, why.model_dump_json())

    def retry(self, job_id: str, fence: int, why: Problem) -> bool:
        """Give a job back for a reason of the machine; it fails where no attempts are left."""
        return self._end("retry", job_id, fence, self._max_attempts, why.model_dump_json())

    def release(self, job_id: str, fence: int) -> bool:
        """Give a job back because the worker stops: the attempt does not count."""
        return self._end("release", job_id, fence)

    # From the reaper's side.

    def sweep(self) -> tuple[str, ...]:
        """Requeue what has lost its worker, and return the jobs whose message is to be sent again."""
        key = f"{PREFIX}sweeping"
        with translated():
            if not self._client.set(key, 1, nx=True, px=SWEEP_LIMIT_MS):
                return ()
        try:
            lost = worker_lost(self._max_attempts)
            due = self._recovery.run("sweep", self._max_attempts, lost, self._resend_after_us, QUEUE_KEY)
            # What is due must be sent, whatever becomes of the rest; that has time until the next sweep.
            with suppress(StoreUnavailable):
                self._recovery.write_dirty()
        finally:
            with suppress(StoreUnavailable), translated():
                self._client.delete(key)
        return tuple(due)

    def rebuild(self) -> None:
        """Rebuild the records from disk, if Redis is new or was restarted; every other call does it too."""
        self._recovery.rebuild()

    def _claim(self, job_id: str, token: str) -> JobRecord | None:
        lost = worker_lost(self._max_attempts)
        answer = self._recovery.ask("claim", job_id, token, self._lease_us, self._max_attempts, lost)
        if answer == "refused":
            return None
        if answer == "failed":
            return self._job_files.write_or_defer(job_id)
        try:
            # The fence must be on disk before anyone works under it: a wipe must not give it out again.
            return self._job_files.write(job_id)
        except (OSError, OutOfSpace):
            self._unclaim(job_id, token)
            raise

    def _unclaim(self, job_id: str, token: str) -> None:
        """Let a job wait on that nobody can work on for now; the sweep offers it again."""
        record = self.get(job_id)
        if record.worker == token:
            self.release(job_id, record.fence)

    def _end(self, verb: str, job_id: str, fence: int, *args: str | float) -> bool:
        try:
            return self._recovery.transition(verb, job_id, fence, *args) is not None
        except JobNotFound:
            return False
