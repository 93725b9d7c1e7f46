"""state/jobs/queue.py: a message is a job id and nothing else, and a lost server never blocks the sender."""

import json
import os
import signal
import socket
import tempfile

import pytest
from celery import Celery

from state.errors import RedisUnavailable
from state.jobs.queue import JobQueue, celery_settings
from state.redis import QUEUE, QUEUE_KEY, TASK, broker_url


@pytest.fixture
def queue(redis_server):
    queue = JobQueue(redis_server.url, timeout_s=1)
    yield queue
    queue.close()


@pytest.fixture
def take(redis_server):
    """Return what takes one message as a worker with the same settings does."""
    app = Celery("consumer", set_as_current=False)
    app.conf.update(celery_settings(redis_server.url))

    def consume() -> tuple[str, list]:
        taken = []

        def receive(body, message) -> None:
            taken.append((message.headers["task"], body[0]))
            message.ack()

        with app.connection_for_read() as connection:
            queue = app.amqp.queues[QUEUE]
            with connection.Consumer(queues=[queue], callbacks=[receive], accept=["json"]):
                connection.drain_events(timeout=5)
        (message,) = taken
        return message

    yield consume
    app.close()


def test_what_is_sent_reaches_a_consumer(queue, take):
    queue.send("J1")
    queue.send("J2")
    assert queue.depth() == 2
    assert [take(), take()] == [(TASK, ["J1"]), (TASK, ["J2"])]
    assert queue.depth() == 0


def test_what_is_sent_first_is_taken_before_all_that_waits(queue, take):
    queue.send("J1")
    queue.send_first(("J2", "J3"))
    assert [take()[1] for _ in range(3)] == [["J2"], ["J3"], ["J1"]]


def test_a_message_is_a_job_id_and_nothing_else(queue, redis_server):
    queue.send("J1")
    (raw,) = redis_server.client().lrange(QUEUE_KEY, 0, -1)
    assert json.loads(raw)["headers"]["argsrepr"] == "['J1']"
    assert json.loads(raw)["headers"]["kwargsrepr"] == "{}"
    assert len(raw) < 1500


def test_every_key_of_the_broker_bears_our_prefix(queue, take, redis_server):
    queue.send("J1")
    take()
    assert all(key.startswith("eckart:broker:") for key in redis_server.client().scan_iter())


@pytest.mark.parametrize("harm", ["wipe", "restart"])
def test_a_send_after_a_wipe_or_a_restart_reaches_a_consumer(queue, take, redis_server, harm):
    queue.send("J1")
    take()
    getattr(redis_server, harm)()
    queue.send("J2")
    assert take() == (TASK, ["J2"])


def test_a_server_that_is_down_raises_at_once_until_it_is_back(queue, take, redis_server):
    redis_server.kill()
    for verb in (lambda: queue.send("J1"), queue.depth, queue.ping):
        with pytest.raises(RedisUnavailable):
            verb()
    redis_server.start()
    queue.ping()
    queue.send("J2")
    assert take() == (TASK, ["J2"])


@pytest.mark.timeout(30)
def test_a_server_that_hangs_does_not_block_the_sender(queue, redis_server):
    queue.send("J1")
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(RedisUnavailable):
            queue.send("J2")
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)


@pytest.mark.timeout(30)
def test_a_server_that_never_answers_does_not_block_the_first_send():
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(f"{folder}/s")
        deaf.listen()
        queue = JobQueue(f"redis+socket://{folder}/s", timeout_s=0.2)
        with pytest.raises(RedisUnavailable):
            queue.send("J1")
        queue.close()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis://:secret@host:6379/2", "redis://:secret@host:6379/2"),
        ("rediss://host/0", "rediss://host/0"),
        ("redis+socket:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"),
    ],
)
def test_celery_gets_its_own_form_of_an_address(given, expected):
    assert broker_url(given) == expected


def test_a_message_sent_to_a_unix_address_is_in_the_database_it_names(redis_server):
    queue = JobQueue(f"{redis_server.unix_url}?db=3")
    queue.send("J1")
    assert queue.depth() == 1
    client = redis_server.client()
    assert client.llen(QUEUE_KEY) == 0
    client.select(3)
    assert client.llen(QUEUE_KEY) == 1
    queue.close()


def test_the_visibility_timeout_is_the_same_in_all_three_places(redis_server):
    settings = celery_settings(redis_server.url)
    assert {
        settings["visibility_timeout"],
        settings["broker_transport_options"]["visibility_timeout"],
        settings["result_backend_transport_options"]["visibility_timeout"],
    } == {86_400}


def test_there_is_no_result_backend_and_no_pickle(redis_server):
    settings = celery_settings(redis_server.url)
    assert (settings["result_backend"], settings["task_ignore_result"]) == (None, True)
    assert (settings["task_serializer"], settings["accept_content"]) == ("json", ["json"])
