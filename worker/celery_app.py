"""The Celery worker: its settings, its one task, and its entry in the registry of workers."""

import gc
import logging
import multiprocessing
import os
import socket
import sys
import threading
import warnings
from contextlib import suppress

from celery import Celery, signals
from celery.exceptions import SecurityWarning

from state.errors import RedisUnavailable
from state.jobs.queue import celery_settings
from state.jobs.store import JobStore
from state.redis import TASK, redis_client
from state.workers import WorkerRegistry
from worker.broker import correct_acknowledgements
from worker.memory import memory_limit_bytes
from worker.orphans import give_back_orphans
from worker.settings import Settings

# A worker process is replaced after this many jobs, which bounds leaks of native libraries.
JOBS_PER_PROCESS = 8
# A process waits for Redis before it says that it is up; Celery would kill it after 4 s by default.
START_TIMEOUT_S = 120.0
# The entry in the registry is refreshed this often, and lives so long without.
REFRESH_S = 5.0
ENTRY_TTL_S = 30

log = logging.getLogger(__name__)


def make_app(redis_url: str, *, workers: int) -> Celery:
    """Build the app; the broker only notifies workers, so losing its messages loses no job."""
    correct_acknowledgements()
    app = Celery("eckart", set_as_current=False)
    app.conf.update(celery_settings(redis_url))
    app.conf.update(
        worker_pool="worker.pool:TaskPool",
        worker_concurrency=workers,
        # The next job stays in the queue, where a free worker finds it.
        worker_prefetch_multiplier=1,
        task_acks_late=True,
        # The message of a killed child is delivered again; the job's count of attempts ends a loop.
        task_reject_on_worker_lost=True,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        worker_max_tasks_per_child=JOBS_PER_PROCESS,
        worker_proc_alive_timeout=START_TIMEOUT_S,
        worker_enable_remote_control=False,
        worker_redirect_stdouts=False,
        # A short outage of Redis must not end hours of work.
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    return app


def set_up_logging() -> None:
    """Log to stderr, one line per event; of Celery's own messages only warnings."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("celery", "kombu", "amqp"):
        logging.getLogger(name).setLevel(logging.WARNING)


# Set in the parent and visible to its forked children, which then return their jobs between two layers.
stopping = multiprocessing.get_context("fork").Event()


def run_worker(settings: Settings, redis_url: str) -> None:
    """Run the worker until a signal stops it."""
    set_up_logging()
    # A connected handler keeps Celery from configuring logging, here and in the children.
    signals.setup_logging.connect(_keep_logging, weak=False)
    # Celery warns at every start when it runs as root; in a container that is the operator's choice.
    warnings.simplefilter("ignore", SecurityWarning)
    app = make_app(redis_url, workers=settings.workers)
    register(app, settings, redis_url)

    def begin_process(**_: object) -> None:
        # This one may take the place of a process that was killed in the middle of a job.
        give_back_orphans(_open_jobs(settings, redis_url), redis_url)

    signals.worker_process_init.connect(begin_process, weak=False)
    signals.worker_shutting_down.connect(_stop, weak=False)
    threading.Thread(target=_stay_registered, args=(redis_url,), name="registry", daemon=True).start()
    log.info("worker %s is up", worker_name())
    # The whole worker may have been killed. Before it imports torch: another may be free for its jobs.
    give_back_orphans(_open_jobs(settings, redis_url), redis_url, lost_messages=True)
    _preload()
    # Workers need not know of each other: all state is in the job records and the registry.
    worker = app.Worker(quiet=True, without_gossip=True, without_mingle=True, without_heartbeat=True)
    worker.start()
    sys.exit(worker.exitcode)


def worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def register(app: Celery, settings: Settings, redis_url: str) -> None:
    """Register the app's one task."""

    @app.task(name=TASK)  # type: ignore[untyped-decorator] # Celery has no types
    def compress(job_id: str) -> None:
        from worker.attempt import run_attempt

        jobs = _open_jobs(settings, redis_url)
        run_attempt(job_id, jobs, settings, worker=worker_name(), stopping=stopping)


def _open_jobs(settings: Settings, redis_url: str) -> JobStore:
    client = redis_client(redis_url)
    return JobStore(client, settings.data_dir, lease_s=settings.lease_s, max_attempts=settings.max_attempts)


def _keep_logging(**_: object) -> None:
    return


def _preload() -> None:
    """Import torch, which takes seconds, for all processes that are forked later.

    That is safe while this process computes nothing: the import begins no thread of torch, and no CUDA.
    """
    # There is no garbage yet, and looking for it would take a sixth of the time.
    gc.disable()
    import worker.attempt  # noqa: F401

    # Celery looks for it before each fork too, which would also copy the memory that they share.
    gc.freeze()
    gc.enable()


def _stop(**_: object) -> None:
    stopping.set()


def _stay_registered(redis_url: str) -> None:
    """Refresh this worker's entry in the registry every few seconds until it stops."""
    registry, name = WorkerRegistry(redis_client(redis_url)), worker_name()
    memory_bytes = memory_limit_bytes()
    while not stopping.is_set():
        try:
            registry.refresh(name, ENTRY_TTL_S, memory_bytes=memory_bytes)
        except RedisUnavailable:
            pass
        except Exception:
            # The thread must live on, or the worker counts as dead while it works.
            log.exception("the worker cannot be registered; it tries again")
        stopping.wait(REFRESH_S)
    with suppress(RedisUnavailable):
        registry.leave(name)
