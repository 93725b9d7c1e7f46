"""Webhooks on disk: which jobs have a message to deliver, and what was tried.

A mark is written before the job, and removed when its message needs no further attempt. So a message is
delivered whatever was down when the job ended, and nothing of it depends on Redis.
"""

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress

from pydantic import ValidationError

from schemas.webhook import Delivery
from state.data_dir import DataDir
from state.files import disk_errors, locked, make_directory, sync_directory, write_atomic
from state.jobs.records import JOB_ID


class WebhookFiles:
    """The marks of all jobs with a webhook, and their deliveries."""

    def __init__(self, paths: DataDir) -> None:
        self._paths = paths

    def lock(self) -> AbstractContextManager[None]:
        """Lock the delivery of all of them, or raise `FilesLocked` where another process delivers."""
        return locked(self._paths.lock("webhooks", ""), wait_s=0)

    def mark(self, job_id: str) -> None:
        """Note that the job has a webhook."""
        with disk_errors():
            make_directory(self._paths.webhooks)
            (self._paths.webhooks / job_id).touch()
            sync_directory(self._paths.webhooks)

    def unmark(self, job_id: str) -> None:
        """Note that nothing is left to deliver."""
        (self._paths.webhooks / job_id).unlink(missing_ok=True)

    def marked(self) -> list[str]:
        """Return the ids of the jobs that have, or will have, something to deliver."""
        with suppress(FileNotFoundError):
            return sorted(path.name for path in self._paths.webhooks.iterdir() if JOB_ID.fullmatch(path.name))
        return []

    def marked_for_s(self, job_id: str) -> float:
        """Return the age of a mark."""
        with suppress(FileNotFoundError):
            return time.time() - (self._paths.webhooks / job_id).stat().st_mtime
        return 0.0

    def deliveries(self, job_id: str) -> tuple[Delivery, ...]:
        """Return what was tried, oldest first; of a damaged file nothing is known."""
        with suppress(OSError, ValueError, TypeError, KeyError, ValidationError):
            found = json.loads(self._paths.deliveries(job_id).read_bytes())["deliveries"]
            return tuple(Delivery.model_validate(each) for each in found)
        return ()

    def record(self, job_id: str, deliveries: Sequence[Delivery]) -> None:
        """Keep what was tried; a job that was deleted meanwhile has no folder, and gets none."""
        document = {"deliveries": [each.model_dump(mode="json") for each in deliveries]}
        with disk_errors(), suppress(FileNotFoundError):
            write_atomic(self._paths.deliveries(job_id), json.dumps(document, indent=1).encode())
