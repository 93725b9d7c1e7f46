"""The Celery app of the worker: late acknowledgements, one job at a time, JSON only, no results."""

import logging
import multiprocessing
import os
import socket
import threading
import warnings
from contextlib import suppress

from celery import Celery, signals
from celery.exceptions import SecurityWarning

from state.errors import StoreUnavailable
from state.jobs import JobStore
from state.queue import celery_settings
from state.redis import TASK, redis_client
from state.workers import WorkerRegistry
from worker.settings import Settings

# A worker process is replaced after this many jobs, so that what native libraries leak stays bounded.
JOBS_PER_PROCESS = 8
# Importing torch may take long on a cold disk; Celery's default of 4 s would kill the process meanwhile.
START_TIMEOUT_S = 120.0


def make_app(redis_url: str, *, workers: int) -> Celery:
    """Build the app; the broker is a doorbell, so nothing is kept in it that matters."""
    app = Celery("eckart", set_as_current=False)
    app.conf.update(celery_settings(redis_url))
    app.conf.update(
        worker_pool="prefork",
        worker_concurrency=workers,
        # The next job stays in the queue, where a free worker finds it.
        worker_prefetch_multiplier=1,
        task_acks_late=True,
        # A child that was killed gives its message back; our own count of attempts ends a loop.
        task_reject_on_worker_lost=True,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        worker_max_tasks_per_child=JOBS_PER_PROCESS,
        worker_proc_alive_timeout=START_TIMEOUT_S,
        worker_enable_remote_control=False,
        worker_redirect_stdouts=False,
        # A blink of Redis must not end hours of work.
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    return app


def set_up_logging(level: int = logging.INFO) -> None:
    """Log to stderr, one line an event; Celery's own chatter only where it warns."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("celery", "kombu", "amqp"):
        logging.getLogger(name).setLevel(logging.WARNING)


log = logging.getLogger(__name__)
BEAT_S = 5.0
BEAT_TTL_S = 30

# Set in the parent, seen by its forked children: a job then goes back to the queue between two layers.
stopping = multiprocessing.get_context("fork").Event()


def run_worker(settings: Settings, redis_url: str) -> None:
    """Run the worker until it is told to stop."""
    set_up_logging()
    # Connected, this keeps Celery from setting up logging of its own, here and in the children.
    signals.setup_logging.connect(_stay_as_it_is, weak=False)
    # Root in a container of its own is an operator's choice; six lines at every start do not change it.
    warnings.simplefilter("ignore", SecurityWarning)
    app = make_app(redis_url, workers=settings.workers)
    register(app, settings, redis_url)
    signals.worker_process_init.connect(_preload, weak=False)
    signals.worker_shutting_down.connect(_stop, weak=False)
    threading.Thread(target=_beat, args=(redis_url,), name="registry", daemon=True).start()
    log.info("worker %s is up", worker_name())
    # One worker needs to hear nothing from another: the record and the registry say it all.
    app.worker_main(["--quiet", "worker", "--without-gossip", "--without-mingle", "--without-heartbeat"])


def worker_name() -> str:
    """Name this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def register(app: Celery, settings: Settings, redis_url: str) -> None:
    """Give the app its one task."""

    @app.task(name=TASK)  # type: ignore[untyped-decorator] # Celery has no types
    def compress(job_id: str) -> None:
        # Torch is imported in the forked child alone: the parent stays small, and no thread pool is forked.
        from worker.attempt import run_attempt

        jobs = JobStore(
            redis_client(redis_url),
            settings.data_dir,
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
        )
        run_attempt(job_id, jobs, settings, worker=worker_name(), stopping=stopping)


def _stay_as_it_is(**_: object) -> None:
    return


def _preload(**_: object) -> None:
    import worker.attempt  # noqa: F401 - so that the first job does not wait for torch


def _stop(**_: object) -> None:
    stopping.set()


def _beat(redis_url: str) -> None:
    """Say every few seconds that this worker is there, until it stops."""
    registry, name = WorkerRegistry(redis_client(redis_url)), worker_name()
    while not stopping.is_set():
        with suppress(StoreUnavailable):
            registry.beat(name, BEAT_TTL_S)
        stopping.wait(BEAT_S)
    with suppress(StoreUnavailable):
        registry.leave(name)
