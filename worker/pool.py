"""A correction of Celery's pool: the end of a process is neither missed nor the end of the worker."""

from typing import Any

from celery.concurrency import asynpool, prefork


class Pool(asynpool.AsynPool):  # type: ignore[misc] # Celery has no types
    """Replaces each process that has ended at once, also where Redis is lost in the same moment."""

    def _event_process_exit(self, hub: Any, proc: Any) -> None:
        # The pipe that tells of the end is closed a moment before the process can be waited for. Celery would
        # look for it once, in vain, and then every five seconds.
        proc.join()
        super()._event_process_exit(hub, proc)

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        # An acknowledgement that meets a dead Redis breaks off the replacement. After it has connected again,
        # Celery would watch that process by the file descriptor None, which ends the worker.
        if getattr(proc, "_sentinel_poll", hub) is None:
            hub.call_soon(self.maintain_pool)
        else:
            super()._track_child_process(proc, hub)


class TaskPool(prefork.TaskPool):  # type: ignore[misc]
    """The pool of processes, as Celery knows it by its name."""

    Pool = Pool
