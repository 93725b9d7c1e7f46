"""A correction of Celery's pool: the end of a process is neither missed nor the end of the worker."""

import time
from typing import Any

from celery.concurrency import asynpool, prefork

# From the moment in which a process closes its files until its parent can wait for it.
END_LIMIT_S = 0.2
POLL_S = 0.002


class Pool(asynpool.AsynPool):  # type: ignore[misc] # Celery has no types
    """Replaces each process that has ended at once, and watches each that lives."""

    def _event_process_exit(self, hub: Any, proc: Any) -> None:
        # The pipe that tells of the end is closed a moment before the process can be waited for. Celery would
        # look for it once, in vain, and then every five seconds.
        end = time.monotonic() + END_LIMIT_S
        while all(each.exitcode is None for each in self._pool) and time.monotonic() < end:
            time.sleep(POLL_S)
        super()._event_process_exit(hub, proc)
        if proc in self._pool:
            # The event was of a file that has been closed, and whose number this process's pipe has now.
            self._track_child_process(proc, hub)

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        if proc.exitcode is not None:
            # It has ended, and an acknowledgement met a dead Redis, which broke off the replacement.
            hub.call_soon(self.maintain_pool)
            return
        if getattr(proc, "_sentinel_poll", hub) is None:
            # Celery would watch the file descriptor None, which ends the worker.
            del proc._sentinel_poll  # noqa: SLF001 - as Celery names it
        super()._track_child_process(proc, hub)


class TaskPool(prefork.TaskPool):  # type: ignore[misc]
    """The pool of processes, as Celery knows it by its name."""

    Pool = Pool
