"""`service.reaper`: lost jobs are queued again, leftovers are removed, and no failure stops it."""

import asyncio
import os
import time

import pytest

from service.reaper import run_cycle
from state.errors import RedisUnavailable
from state.records import new_token
from tests.service.files import checkpoint_bytes
from tests.service.running import until

MODEL = checkpoint_bytes()


def queued_messages(redis_server):
    client = redis_server.client()
    return client.llen("eckart:broker:eckart")


def test_a_job_whose_worker_died_is_queued_and_rung_for_again(redis_server, start):
    service = start(reaper_s=0.1, lease_s=0.3, heartbeat_s=0.1)
    job = service.submit(service.stored(MODEL)).json()["id"]
    redis_server.client().delete("eckart:broker:eckart")
    service.jobs.claim(job, new_token("dies"))

    until(lambda: service.jobs.get(job).state == "queued")
    until(lambda: queued_messages(redis_server) > 0)


def test_the_reaper_survives_a_redis_that_goes_and_comes_back(redis_server, start):
    service = start(reaper_s=0.5, lease_s=0.3, heartbeat_s=0.1)
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


@pytest.fixture
def decomposition(tmp_path):
    """Put a decomposition into the cache."""

    def put(sha256, name="a.safetensors"):
        path = tmp_path / "decompositions" / sha256 / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        return path

    return put


def test_decompositions_of_files_that_nobody_has_are_removed_at_start(start, decomposition):
    service = start(reaper_s=0.1)
    kept = decomposition(service.checkpoints.get(service.stored(MODEL)).files[0].sha256)
    orphan = decomposition("ab" * 32)
    start(reaper_s=0.1)

    until(lambda: not orphan.exists())
    assert kept.exists()


def test_the_cache_is_kept_within_its_bounds(start, decomposition):
    service = start(reaper_s=0.1, cache_bytes=1500)
    sha256 = service.checkpoints.get(service.stored(MODEL)).files[0].sha256
    old = decomposition(sha256)
    os.utime(old, (1, 1))
    new = decomposition(sha256, "b.safetensors")

    until(lambda: not old.exists() or not new.exists())
    assert new.exists()


@pytest.mark.parametrize("fault", [RedisUnavailable(), OSError("the disk is away"), RuntimeError("a bug")])
def test_a_step_that_fails_keeps_no_other_from_its_turn_and_is_logged(fault, caplog):
    taken = []

    def fail():
        raise fault

    steps = {"fail": fail, "go on": lambda: taken.append("went on")}
    asyncio.run(run_cycle(steps))

    assert taken == ["went on"]
    assert "the reaper" in caplog.text
