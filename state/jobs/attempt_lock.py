"""A lock that an attempt holds while it lives: one that nobody holds any more is of a process that died.

The kernel lets go of it however the process ends, also in another container on the same volume.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from state.data_dir import DataDir
from state.files import PART_ENDING, is_orphaned
from state.jobs.records import Claim

log = logging.getLogger("eckart.state")
PATTERN = "attempt-*.lock"


@contextmanager
def attempt_lock(paths: DataDir, claim: Claim) -> Iterator[None]:
    """Hold the attempt's lock; without one, on a full disk say, only the lease tells its death."""
    path = paths.attempt_lock(claim.record.id, claim.fence)
    descriptor = None
    try:
        for old in path.parent.glob(PATTERN):
            if is_orphaned(old):
                old.unlink(missing_ok=True)
        descriptor = _create_locked(path)
    except OSError:
        log.warning("job %s: its attempt holds no lock", claim.record.id, exc_info=True)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(descriptor)


def has_died(paths: DataDir, job_id: str, fence: int) -> bool:
    """Whether the attempt's lock is there, and nobody holds it."""
    return is_orphaned(paths.attempt_lock(job_id, fence))


def _create_locked(path: Path) -> int:
    """Create the file under its name only when it is locked."""
    part = path.with_name(path.name + PART_ENDING)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.rename(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
