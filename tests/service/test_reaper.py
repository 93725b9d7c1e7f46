"""The reaper mends what was lost: workers, messages, and itself when Redis goes."""

import os
import time

from state.records import new_token
from tests.service.files import checkpoint_bytes

MODEL = checkpoint_bytes()


def until(holds, limit_s=60):
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def queued_messages(redis_server):
    client = redis_server.client()
    return client.llen("eckart:broker:eckart")


def test_a_job_whose_worker_died_is_queued_and_rung_for_again(redis_server, start):
    service = start(reaper_s=0.1, lease_s=0.3)
    job = service.submit(service.stored(MODEL)).json()["id"]
    redis_server.client().delete("eckart:broker:eckart")
    service.jobs.claim(job, new_token("dies"))

    until(lambda: service.jobs.get(job).state == "queued")
    until(lambda: queued_messages(redis_server) > 0)


def test_the_reaper_survives_a_redis_that_goes_and_comes_back(redis_server, start):
    service = start(reaper_s=0.5, lease_s=0.3)
    job = service.submit(service.stored(MODEL)).json()["id"]
    service.jobs.claim(job, new_token("dies"))
    redis_server.kill()
    time.sleep(0.5)
    redis_server.start()

    until(lambda: service.jobs.get(job).state == "queued")


def test_uploads_that_a_killed_process_left_are_swept_away_at_start(start, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    stray = parts / "stray.part"
    stray.write_bytes(b"half")
    old = time.time() - 10_000
    os.utime(stray, (old, old))
    start(reaper_s=0.1)

    until(lambda: not stray.exists())


def test_leftovers_that_cannot_be_swept_away_keep_no_job_waiting(start, tmp_path):
    stuck = tmp_path / "parts" / "stuck.part"
    stuck.mkdir(parents=True)  # no file, so it cannot be unlinked
    old = time.time() - 10_000
    os.utime(stuck, (old, old))
    service = start(reaper_s=0.1, lease_s=0.3)
    job = service.submit(service.stored(MODEL)).json()["id"]
    service.jobs.claim(job, new_token("dies"))

    until(lambda: service.jobs.get(job).state == "queued")
