"""worker/orphans.py and jobs/attempt_lock.py: a job whose process was killed does not wait for its lease."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from state.data_dir import DataDir
from state.jobs.attempt_lock import attempt_lock
from state.jobs.queue import JobQueue
from state.jobs.records import NewJob, new_token
from state.jobs.store import JobStore
from state.redis import QUEUE_KEY
from worker.orphans import give_back_orphans

HOST = socket.gethostname()
# Claims a job and holds its attempt's lock.
ATTEMPT = """
import sys, time
from pathlib import Path
from state.jobs.attempt_lock import attempt_lock
from state.data_dir import DataDir
from state.jobs.store import JobStore
from state.jobs.records import new_token
from state.redis import redis_client
_, url, folder, job_id, host = sys.argv
claim = JobStore(redis_client(url), Path(folder)).claim(job_id, new_token(f"{host}:1"))
with attempt_lock(DataDir(Path(folder)), claim):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def jobs(redis_server, tmp_path):
    return JobStore(redis_server.client(), tmp_path)


@pytest.fixture
def begin(redis_server, tmp_path, jobs):
    """Return what begins a job in a process of its own, which may seem to be of another host."""
    begun = []

    def start(host=HOST):
        job_id = jobs.create(NewJob(checkpoint="m", spec={"rank": 1})).id
        command = [sys.executable, "-c", ATTEMPT, redis_server.url, tmp_path, job_id, host]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        begun.append(process)
        assert process.stdout.readline() == b"held\n"
        return job_id, process

    yield start
    for process in begun:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_job_of_a_killed_process_is_queued_and_its_message_sent(jobs, begin, redis_server):
    job_id, process = begin()
    other_id, other = begin()
    os.kill(other.pid, signal.SIGSTOP)
    process.kill()
    process.wait()

    give_back_orphans(jobs, redis_server.url)

    record = jobs.get(job_id)
    assert (record.state, record.attempts_without_progress) == ("queued", 1)
    assert jobs.get(other_id).state == "running"
    queue = JobQueue(redis_server.url)
    assert queue.depth() == 1
    queue.close()


def test_the_jobs_of_other_hosts_are_left_alone(jobs, begin, redis_server):
    job_id, process = begin(host="elsewhere")
    process.kill()
    process.wait()

    give_back_orphans(jobs, redis_server.url)

    assert jobs.get(job_id).state == "running"


def test_an_attempt_without_a_lock_has_its_lease(jobs, redis_server):
    job_id = jobs.create(NewJob(checkpoint="m", spec={"rank": 1})).id
    assert jobs.claim(job_id, new_token(f"{HOST}:1")) is not None

    give_back_orphans(jobs, redis_server.url)

    assert jobs.get(job_id).state == "running"


def test_a_lock_leaves_nothing_and_the_next_attempt_removes_that_of_a_killed_one(
    jobs, begin, redis_server, tmp_path
):
    job_id, process = begin()
    process.kill()
    process.wait()
    give_back_orphans(jobs, redis_server.url)
    claim = jobs.claim(job_id, new_token("w"))
    folder = tmp_path / "jobs" / job_id

    with attempt_lock(DataDir(tmp_path), claim):
        assert sorted(path.name for path in folder.iterdir()) == ["attempt-2.lock", "job.json"]
    assert [path.name for path in folder.iterdir()] == ["job.json"]


def test_without_redis_a_process_starts_all_the_same(jobs, redis_server, caplog):
    redis_server.kill()

    give_back_orphans(jobs, redis_server.url)

    assert "when their leases end" in caplog.text


def test_a_message_that_a_killed_worker_took_with_it_is_sent_at_once(jobs, redis_server):
    job_id = jobs.create(NewJob(checkpoint="m", spec={"rank": 1})).id
    queue = JobQueue(redis_server.url)
    queue.send(job_id)
    redis_server.client().delete(QUEUE_KEY)

    give_back_orphans(jobs, redis_server.url)
    assert queue.depth() == 0
    give_back_orphans(jobs, redis_server.url, lost_messages=True)
    assert queue.depth() == 1
    queue.close()


def test_a_message_that_waits_in_the_queue_is_not_sent_twice(jobs, redis_server):
    queue = JobQueue(redis_server.url)
    queue.send(jobs.create(NewJob(checkpoint="m", spec={"rank": 1})).id)

    give_back_orphans(jobs, redis_server.url, lost_messages=True)
    assert queue.depth() == 1
    queue.close()
