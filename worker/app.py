"""The Celery app of the worker: late acknowledgements, one job at a time, JSON only, no results."""

import logging

from celery import Celery

from state.queue import celery_settings

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
