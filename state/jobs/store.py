"""Everything that can happen to a job: a script in `jobs/lua`, then job.json, and only then the answer."""

import copy
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import redis

from schemas.job import UNFINISHED, JobState, Progress
from schemas.problem import Problem, ProblemKind
from schemas.report import Totals
from state.checkpoints.store import has_files
from state.data_dir import DataDir
from state.errors import (
    BadCursor,
    CheckpointGone,
    CheckpointInUse,
    FilesLocked,
    IdempotencyMismatch,
    JobNotFailed,
    JobNotFound,
    OutOfSpace,
    RedisUnavailable,
    TooManyJobs,
    UnreadableRecord,
)
from state.jobs.attempt_lock import has_died
from state.jobs.job_file import JobFiles, batched
from state.jobs.records import (
    JOB_ID,
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
    microseconds,
    new_job_id,
    next_cursor,
    rfc3339,
    shortened,
)
from state.jobs.scripts import Scripts, StateLost
from state.jobs.webhooks import WebhookFiles
from state.redis import KEY_PREFIX, QUEUE_KEY, RedisMemory, redis_memory, translated

T = TypeVar("T")

log = logging.getLogger("eckart.state")

DELETE_LIMIT_MS = 60_000
MOST_DETAIL_BYTES = 500
MOST_ERRORS = 4
EXPIRED_MOST = 500
UNOWNED = KEY_PREFIX + "unowned"


class JobStore:
    """The jobs, for the service and the workers.

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
        self._files = JobFiles(self._paths, self._scripts, lease_us=self._lease_us)

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

    def list(self, state: JobState | None = None, *, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Return a page of jobs, newest first; `cursor` is the `next_cursor` of the page before."""
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 16):
            raise BadCursor("jobs")
        index = (state or "all") + ("" if self._owner is None else f"@{self._owner}")
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
        total = 0
        for job_id in ids:
            with suppress(FileNotFoundError):  # deleted meanwhile
                total += sum(path.stat().st_size for path in self._paths.job(job_id).glob("result-*/*"))
        return total

    def counts(self) -> JobCounts:
        return job_counts(self._run("counts"))

    def redis_memory(self) -> RedisMemory:
        return redis_memory(self._client)

    def resume(self, job_id: str) -> JobRecord:
        """Queue a failed job again, on its finished layers; the caller sends the message.

        Raises `JobNotFailed`, `UnreadableRecord`, or `CheckpointGone` if it has lost its input.
        """
        record, token = self.get(job_id), secrets.token_hex(8)
        if not record.readable:
            raise UnreadableRecord
        if record.state == "failed" and not self._has_input(record):
            raise CheckpointGone

        if record.webhook is not None:
            self._webhooks.mark(job_id)

        def act() -> JobRecord:
            answer = self._run_on("resume", job_id, token)
            if answer == "gone":
                raise CheckpointGone
            if answer != "done":
                raise JobNotFailed(answer)
            return _present(self._files.write_or_defer(job_id))

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

    def delete(self, job_id: str) -> None:
        """Cancel a job and remove all its files and keys."""
        self.cancel(job_id)
        self._files.delete(job_id)
        self._webhooks.unmark(job_id)

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

    def finish(self, job_id: str, fence: int, summary: Totals, single_file: str | None = None) -> bool:
        """Publish a result whose files are durable and in place; False: this attempt lost the job."""
        return self._end("finish", job_id, fence, summary.model_dump_json(), single_file or "")

    def fail(self, job_id: str, fence: int, why: Problem) -> bool:
        """End a job because of its input."""
        return self._end("fail", job_id, fence, _short(why))

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
        return self._end("retry", job_id, fence, self._max_attempts, _short(why), *times)

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

    # For the reaper.

    def remove_failed_layers(
        self, *, older_than_s: float = 0.0, enough: Callable[[], bool] = lambda: False
    ) -> None:
        """Remove the finished layers that failed jobs keep, the oldest first, until it is enough."""
        for job_id in self._files.with_layers():
            if enough():
                return
            self._files.remove_failed_layers(job_id, older_than_s=older_than_s)

    def remove_expired(self) -> int:
        """Remove jobs that ended longer ago than they are kept, some hundreds at most; return how many."""
        if self._retention_us is None:
            return 0
        removed = 0
        for job_id in self._run("expired", self._retention_us, EXPIRED_MOST):
            with suppress(FilesLocked):
                removed += self._expire(str(job_id), self._retention_us)
        return removed

    def _expire(self, job_id: str, retention_us: int) -> bool:
        if not self._with_restore(lambda: self._files.expire(job_id, retention_us)):
            return False
        log.info("job %s has been kept long enough and is removed", job_id)
        return True

    def reconcile(self, *, older_than_s: float) -> Counter[str]:
        """Restore jobs that Redis has lost unnoticed, and remove directories that are of no job."""
        done: Counter[str] = Counter()
        self.counts()  # restores everything first, if Redis is known to have lost it
        for batch in batched(self._files.job_ids()):
            done += self._files.reconcile(batch, older_than_s)
        return done

    def named_checkpoints(self) -> frozenset[str] | None:
        """Return the checkpoints that jobs name, by `DataDir.key`; None if a job cannot be read."""
        found: set[str] = set()
        for batch in batched(self._scripts.job_ids()):
            for owner, names in self._scripts.checkpoints_of(batch):
                if not names:
                    return None
                found |= {DataDir(self._paths.root, owner).key(name) for name in names}
        return frozenset(found)

    def now_s(self) -> float:
        """Return the time of the server's clock, by which jobs end, in seconds since 1970."""
        with translated():
            seconds, rest_us = self._client.time()
        return float(seconds) + float(rest_us) / 1e6

    def unowned_checkpoints(self) -> tuple[tuple[str, str], ...]:
        """Return the owner and the id of checkpoints that came with jobs which are deleted."""
        with translated():
            keys: Any = self._client.smembers(UNOWNED)
        parts = (str(key).rpartition("/") for key in sorted(keys))
        return tuple((owner, name) for owner, _, name in parts)

    def forget_unowned(self, owner: str, checkpoint_id: str) -> None:
        """Note that a checkpoint without its job is deleted."""
        with translated():
            self._client.srem(UNOWNED, DataDir(self._paths.root, owner).key(checkpoint_id))

    def sweep(self) -> tuple[str, ...]:
        """Queue jobs again whose worker was lost, and return the jobs whose message must be sent again.

        Send them before `write_deferred`, which may take long. A later sweep finds those that are not sent.
        """
        self._scripts.forget_if_set_back(self._files.created())
        lost = worker_lost(self._max_attempts).model_dump_json()
        limits = (self._max_attempts, lost, self._lease_us, self._send_again_after_us)
        return tuple(self._run("sweep", *limits, QUEUE_KEY))

    def write_deferred(self) -> None:
        """Bring job.json up to date where that failed before; one that fails again stops no other."""
        for job_id in self._scripts.dirty():
            try:
                self._with_restore(partial(self._files.write_or_defer, job_id, wait_s=0))
            except RedisUnavailable:
                raise
            except Exception:
                log.exception(
                    "job.json of %s cannot be brought up to date; the next turn tries again", job_id
                )

    # Each method above runs one of these, from its start again whenever Redis lost its data.

    def _with_restore(self, action: Callable[[], T]) -> T:
        return self._scripts.with_restore(action, self._files.restore_all)

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
            return _present(self._files.write_or_defer(job_id))

        return self._with_restore(act)

    def _end(self, verb: str, job_id: str, fence: int, *args: str | float) -> bool:
        try:
            return self._transition(verb, job_id, fence, *args) is not None
        except JobNotFound:
            return False

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
        return _present(self._files.write(answer.removeprefix("replay:")))

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
            record = _present(self._files.create_locked(job_id, fixed))
            self._files.note_created(job_id)
        except BaseException:
            self._files.undo_locked(job_id)
            raise
        return record


def _present(record: JobRecord | None) -> JobRecord:
    if record is None:
        # Redis lost it, or the process that created it undid that, before it was on disk.
        raise StateLost
    return record


def _short(why: Problem) -> str:
    """Return a problem as it is kept: its detail may name many tensors, and is shown in each list."""
    errors = [each.model_copy(update={"detail": shortened(each.detail)}) for each in why.errors[:MOST_ERRORS]]
    short = {"detail": shortened(why.detail, MOST_DETAIL_BYTES), "errors": tuple(errors)}
    return why.model_copy(update=short).model_dump_json()


def worker_lost(attempts: int) -> Problem:
    """Return the problem of a job whose last attempt lost its worker."""
    kind = ProblemKind.WORKER_LOST
    return kind.problem(kind.text(attempts=attempts))
