"""The layout of the data directory: paths only; nothing is read or made here."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

LOCK_STRIPES = 256


@dataclass(frozen=True, slots=True)
class DataDir:
    """Paths below the data directory; the caller has checked ids and file names."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def parts(self) -> Path:
        """Temporary files, on the same file system, so that publishing is a rename."""
        return self.root / "parts"

    @property
    def trash(self) -> Path:
        """Directories that are being deleted: moved here in one step, then emptied."""
        return self.root / "trash"

    @property
    def run(self) -> Path:
        """Process ids and sockets of `eckart serve`."""
        return self.root / "run"

    @property
    def redis(self) -> Path:
        """The files of the Redis server that `eckart serve` starts."""
        return self.root / "redis"

    def checkpoint(self, checkpoint_id: str) -> Path:
        return self.checkpoints / checkpoint_id

    def manifest(self, checkpoint_id: str) -> Path:
        """Sizes and digests of the stored files; no file name starts with a dot."""
        return self.checkpoint(checkpoint_id) / ".manifest.json"

    @property
    def decompositions(self) -> Path:
        """Cached decompositions, in one directory for each stored file, named by its digest."""
        return self.root / "decompositions"

    def job(self, job_id: str) -> Path:
        return self.jobs / job_id

    def record(self, job_id: str) -> Path:
        """Return the path of job.json, the copy of the record in Redis."""
        return self.job(job_id) / "job.json"

    def spool(self, job_id: str) -> Path:
        """Finished layers, for the next attempt."""
        return self.job(job_id) / "spool"

    def result(self, job_id: str, fence: int) -> Path:
        """Return the directory of one attempt's result; only the one that the record names is ever served."""
        return self.job(job_id) / f"result-{fence}"

    def lock(self, kind: str, key: str) -> Path:
        """Return a lock file, shared by many keys: it outlives them, so nobody waits on a deleted file."""
        stripe = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % LOCK_STRIPES
        return self.root / "locks" / f"{kind}-{stripe:03d}"
