"""What the reaper does with all jobs: it finds what was lost, and removes what has been kept long enough."""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from state.data_dir import DataDir
from state.errors import FilesLocked, RedisUnavailable
from state.jobs.job_file import batched
from state.jobs.transitions import Transitions, worker_lost
from state.redis import KEY_PREFIX, QUEUE_KEY, server_time_s, translated

log = logging.getLogger("eckart.state")

EXPIRED_MOST = 500
UNOWNED = KEY_PREFIX + "unowned"


class JobUpkeep:
    """The reaper's work on the jobs of all owners."""

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._limits = transitions.limits
        self._files = transitions.files
        self._scripts = transitions.scripts
        self._client = transitions.client

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
        retention_us = self._limits.retention_us
        if retention_us is None:
            return 0
        removed = 0
        for job_id in self._transitions.run("expired", retention_us, EXPIRED_MOST):
            with suppress(FilesLocked):
                removed += self._expire(str(job_id), retention_us)
        return removed

    def _expire(self, job_id: str, retention_us: int) -> bool:
        if not self._transitions.with_restore(lambda: self._files.expire(job_id, retention_us)):
            return False
        log.info("job %s has been kept long enough and is removed", job_id)
        return True

    def reconcile(self, *, older_than_s: float) -> Counter[str]:
        """Restore jobs that Redis has lost unnoticed, and remove directories that are of no job."""
        done: Counter[str] = Counter()
        self._transitions.run("counts")  # restores everything first, if Redis is known to have lost it
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
                found |= {DataDir(self._transitions.paths.root, owner).key(name) for name in names}
        return frozenset(found)

    def now_s(self) -> float:
        """Return the time of the clock by which jobs end, in seconds since 1970."""
        return server_time_s(self._client)

    def unowned_checkpoints(self) -> tuple[tuple[str, str], ...]:
        """Return the owner and the id of checkpoints that came with jobs which are deleted."""
        with translated():
            keys: Any = self._client.smembers(UNOWNED)
        parts = (str(key).rpartition("/") for key in sorted(keys))
        return tuple((owner, name) for owner, _, name in parts)

    def forget_unowned(self, owner: str, checkpoint_id: str) -> None:
        """Note that a checkpoint without its job is deleted."""
        with translated():
            self._client.srem(UNOWNED, DataDir(self._transitions.paths.root, owner).key(checkpoint_id))

    def sweep(self, *, at_once: bool = False) -> tuple[str, ...]:
        """Queue jobs again whose worker was lost, and return the jobs whose message must be sent again.

        A message that is not in the queue any more may have been read a moment ago: it counts as lost after a
        while, or `at_once`. Send them before `write_deferred`, which may take long. A later sweep finds those
        that are not sent.
        """
        self._scripts.forget_if_set_back(self._files.created())
        lost = worker_lost(self._limits.max_attempts).model_dump_json()
        grace_us = 0 if at_once else self._limits.send_again_after_us
        limits = (self._limits.max_attempts, lost, self._limits.lease_us, grace_us)
        return tuple(self._transitions.run("sweep", *limits, QUEUE_KEY))

    def write_deferred(self) -> None:
        """Bring job.json up to date where that failed before; one that fails again stops no other."""
        for job_id in self._scripts.dirty():
            try:
                self._transitions.with_restore(partial(self._files.write_or_defer, job_id, wait_s=0))
            except RedisUnavailable:
                raise
            except Exception:
                log.exception(
                    "job.json of %s cannot be brought up to date; the next turn tries again", job_id
                )
