"""worker/pool.py: a process that ends is replaced at once, whatever else is lost in that moment."""

import os
import signal
import time

import pytest
from celery import Celery
from kombu.asynchronous import Hub, get_event_loop, set_event_loop

from worker.pool import TaskPool


@pytest.fixture
def hub():
    before, hub = get_event_loop(), Hub()
    set_event_loop(hub)
    yield hub
    set_event_loop(before)
    hub.close()


@pytest.fixture
def pool(hub):
    """Start one process and let the event loop watch it, as Celery's worker does."""
    app = Celery("test", set_as_current=False)
    celery_pool = TaskPool(1, app=app, threads=False, initargs=(app, "test"))
    celery_pool.start()
    celery_pool.register_with_event_loop(hub)
    yield celery_pool
    celery_pool.terminate()


def run_until(hub, condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        hub.run_once()


def process_of(pool):
    (process,) = pool._pool._pool or [None]
    return process


def test_a_killed_process_is_replaced_by_the_event_of_its_end(hub, pool):
    killed = process_of(pool)
    # Celery also looks now and then; here only the event may help.
    hub.timer.clear()
    os.kill(killed.pid, signal.SIGKILL)

    run_until(hub, lambda: process_of(pool) not in {None, killed})
    assert process_of(pool)._is_alive()


def test_a_process_whose_replacement_was_broken_off_is_replaced_after_the_next_connection(hub, pool):
    killed = process_of(pool)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    # So far the event of its end came, before an acknowledgement met a dead Redis.
    pool._pool._untrack_child_process(killed, hub)

    pool.register_with_event_loop(hub)
    hub.timer.clear()
    run_until(hub, lambda: process_of(pool) not in {None, killed})
    assert process_of(pool)._is_alive()


def test_a_process_that_another_ones_event_is_taken_for_is_watched_on(hub, pool):
    living = process_of(pool)
    pool._pool._event_process_exit(hub, living)
    pool.register_with_event_loop(hub)
    assert process_of(pool) is living

    hub.timer.clear()
    os.kill(living.pid, signal.SIGKILL)
    run_until(hub, lambda: process_of(pool) not in {None, living})
