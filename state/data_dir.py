"""The layout of the data directory: paths only; nothing is read or made here."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LOCK_STRIPES = 256
# Also a folder's name, and a part of Redis keys and of names in the cache: see `DataDir.key`.
OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SPOOL_NAME = "spool"
RECORD_NAME = "job.json"


@dataclass(frozen=True, slots=True)
class DataDir:
    """Paths below the data directory; the caller has checked ids and file names.

    Checkpoints are those of `owner`, by the name of its key; '' has what was stored without keys. Ids of jobs
    are unique among all owners, and a job's record names its own.
    """

    root: Path
    owner: str = ""

    @property
    def checkpoints(self) -> Path:
        return (self.owners / self.owner if self.owner else self.root) / "checkpoints"

    @property
    def uploads(self) -> Path:
        """Resumable uploads of the owner, each in a folder of its own."""
        return (self.owners / self.owner if self.owner else self.root) / "uploads"

    @property
    def owners(self) -> Path:
        return self.root / "owners"

    def of_all_owners(self) -> Iterator["DataDir"]:
        """Yield the paths of each owner that there is, beginning with ''."""
        yield DataDir(self.root)
        for folder in sorted(self.owners.glob("*")):
            if OWNER.fullmatch(folder.name):
                yield DataDir(self.root, folder.name)

    def key(self, checkpoint_id: str) -> str:
        """Return a name of a checkpoint that no other owner's has; no id holds a slash."""
        return f"{self.owner}/{checkpoint_id}" if self.owner else checkpoint_id

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def created(self) -> Path:
        """How many jobs were ever created: a Redis that knows of fewer was set back."""
        return self.root / "created-jobs"

    @property
    def link_secret(self) -> Path:
        """What signs links to results: see `state.link_secret`."""
        return self.root / "link-secret"

    @property
    def webhooks(self) -> Path:
        """An empty file for each job whose webhook is not delivered yet, named by its id."""
        return self.root / "webhooks"

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
    def timeline(self) -> Path:
        """When each checkpoint of the owner was stored into last: see `checkpoints.timeline`."""
        return (self.owners / self.owner if self.owner else self.root) / "timeline"

    @property
    def holders(self) -> Path:
        """Which checkpoints hold a file, in one directory for each digest: see `checkpoints.holders`."""
        return self.root / "holders"

    @property
    def decompositions(self) -> Path:
        """Cached decompositions, in one directory for each stored file, named by its digest."""
        return self.root / "decompositions"

    def job(self, job_id: str) -> Path:
        return self.jobs / job_id

    def record(self, job_id: str) -> Path:
        """Return the path of job.json, the copy of the record in Redis."""
        return self.job(job_id) / RECORD_NAME

    def deliveries(self, job_id: str) -> Path:
        """Return the file with the attempts to deliver the job's webhook."""
        return self.job(job_id) / "deliveries.json"

    def owner_note(self, job_id: str) -> Path:
        """Return the file with the owner of a job, for a job.json that is damaged; '' has none."""
        return self.job(job_id) / "owner"

    def spool(self, job_id: str) -> Path:
        """Finished layers, for the next attempt."""
        return self.job(job_id) / SPOOL_NAME

    def attempt_lock(self, job_id: str, fence: int) -> Path:
        """Return the file that an attempt keeps locked while it lives."""
        return self.job(job_id) / f"attempt-{fence}.lock"

    def result(self, job_id: str, fence: int) -> Path:
        """Return the directory of one attempt's result; only the one that the record names is ever served."""
        return self.job(job_id) / f"result-{fence}"

    def lock(self, kind: str, key: str) -> Path:
        """Return a lock file, shared by many keys: it outlives them, so nobody waits on a deleted file."""
        stripe = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % LOCK_STRIPES
        return self.root / "locks" / f"{kind}-{stripe:03d}"
