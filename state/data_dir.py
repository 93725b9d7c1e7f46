"""Where things lie below the data directory: paths alone, nothing read or made."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

LOCK_STRIPES = 256


@dataclass(frozen=True, slots=True)
class DataDir:
    """The data directory; ids and file names were checked by whoever asks."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def parts(self) -> Path:
        """Uploads under way: on the same file system, so that publishing is a rename."""
        return self.root / "parts"

    @property
    def trash(self) -> Path:
        """Directories under deletion: out of sight at once, emptied afterwards."""
        return self.root / "trash"

    @property
    def run(self) -> Path:
        """Process ids and sockets of the standalone set."""
        return self.root / "run"

    @property
    def redis(self) -> Path:
        """The embedded server's own files."""
        return self.root / "redis"

    def checkpoint(self, checkpoint_id: str) -> Path:
        return self.checkpoints / checkpoint_id

    def manifest(self, checkpoint_id: str) -> Path:
        """Names, sizes and digests of the published files; no file name starts with a dot."""
        return self.checkpoint(checkpoint_id) / ".manifest.json"

    @property
    def decompositions(self) -> Path:
        """Decompositions kept for further jobs, in a directory for each stored file, by its digest."""
        return self.root / "decompositions"

    def job(self, job_id: str) -> Path:
        return self.jobs / job_id

    def record(self, job_id: str) -> Path:
        """Name the shadow of the job's record in Redis."""
        return self.job(job_id) / "job.json"

    def work(self, job_id: str) -> Path:
        """Finished layers, kept for the next attempt."""
        return self.job(job_id) / "work"

    def result(self, job_id: str, fence: int) -> Path:
        """One attempt's result; only the one the record names is ever served."""
        return self.job(job_id) / f"result-{fence}"

    def lock(self, kind: str, key: str) -> Path:
        """Name a lock file that many keys share: it outlives them, so no one waits on a deleted file."""
        stripe = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % LOCK_STRIPES
        return self.root / "locks" / f"{kind}-{stripe:03d}"
