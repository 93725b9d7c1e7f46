"""worker/celery_app.py: a worker stays in the registry as long as it works."""

import threading
import time

import pytest

from state.redis import redis_client
from state.workers import WORKERS, WorkerRegistry
from worker import celery_app


def until(holds):
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def stopping(monkeypatch):
    event = threading.Event()
    monkeypatch.setattr(celery_app, "stopping", event)
    monkeypatch.setattr(celery_app, "REFRESH_S", 0.01)
    yield event
    event.set()


def test_whatever_keeps_a_worker_from_being_registered_it_tries_again(redis_server, stopping, caplog):
    client = redis_server.client()
    client.set(WORKERS, "of another kind")
    thread = threading.Thread(target=celery_app._stay_registered, args=(redis_server.url,))
    thread.start()
    until(lambda: "the worker cannot be registered" in caplog.text)
    client.delete(WORKERS)

    with redis_client(redis_server.url) as other:
        registry = WorkerRegistry(other)
        until(lambda: registry.alive() == [celery_app.worker_name()])
        stopping.set()
        thread.join()
        assert registry.alive() == []
