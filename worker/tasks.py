"""The Celery task: an id in, nothing out, harmless twice."""

import logging
import multiprocessing
import os
import socket
import threading
import warnings
from contextlib import suppress

from celery import Celery, signals
from celery.exceptions import SecurityWarning

from state.connection import redis_client
from state.errors import StoreUnavailable
from state.jobs import JobStore
from state.names import TASK
from state.workers import WorkerRegistry
from worker.app import make_app, set_up_logging
from worker.settings import Settings

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
