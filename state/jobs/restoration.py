"""Putting the records of all jobs back into Redis, from their job.json, where Redis lost its data."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from state.data_dir import DataDir
from state.errors import FilesLocked
from state.jobs.job_file import JobFiles, batched
from state.jobs.scripts import Scripts, StoredJob

GONE_WAIT_S = 0.5


class Restoration:
    """Restores every job on disk, without a lock that a process may hold."""

    def __init__(self, paths: DataDir, scripts: Scripts, files: JobFiles, *, lease_us: int) -> None:
        self._paths = paths
        self._scripts = scripts
        self._files = files
        self._lease_us = lease_us

    def run(self, token: str) -> None:
        """Restore all in this turn: each job.json is read once, while Redis works on the batch before.

        Raises `StateLost` where the turn has passed to another process.
        """
        created = self._files.created()
        with ThreadPoolExecutor(1, "restore") as sender:
            sent: Future[None] | None = None
            for batch in self._batches():
                if sent is not None:
                    sent.result()
                sent = sender.submit(self._scripts.restore_records, batch, token=token)
            if sent is not None:
                sent.result()
        self._forget_deleted()
        self._scripts.run_always("restored", self._lease_us, created)

    def _batches(self) -> Iterator[list[StoredJob]]:
        for job_ids in batched(self._files.job_ids()):
            yield [job for job_id in job_ids if (job := self._files.stored(job_id)) is not None]

    def _forget_deleted(self) -> None:
        """Delete the records of jobs that were deleted meanwhile, or after the time Redis was set back to."""
        on_disk = set(self._files.job_ids())
        for job_id in self._scripts.job_ids():
            if job_id not in on_disk:
                # Whoever creates a job holds the lock until there is a directory.
                with suppress(FilesLocked), self._files.lock(job_id, wait_s=GONE_WAIT_S):
                    if not self._paths.job(job_id).exists():
                        self._scripts.run_always("delete", job_id)
