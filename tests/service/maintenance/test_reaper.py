"""`maintenance.reaper`: lost jobs are queued again, leftovers are removed, and no failure stops it."""

import asyncio
import os
import re
import threading
import time

import pytest

from service.maintenance.reaper import run_steps
from service.maintenance.turns import Turns
from state.errors import RedisUnavailable
from state.jobs.records import new_token
from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem, until
from tests.stopped import stopped_holder

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

    turns = Turns(every_s=0.01)
    run_until({"fail": fail, "go on": lambda: taken.append("went on")}, turns, lambda: len(taken) >= 2)

    assert "the reaper" in caplog.text
    assert turns.ages_s()["fail"] > turns.ages_s()["go on"]


def test_a_step_that_hangs_keeps_no_other_from_its_turn_and_is_late(caplog):
    turns, taken, end = Turns(every_s=0.01), [], threading.Event()
    steps = {"hang": end.wait, "go on": lambda: taken.append("went on")}

    def is_late():
        return turns.is_late("hang") and "tried to hang" in caplog.text

    run_until(steps, turns, is_late, finally_=end.set)

    assert len(taken) >= 2
    assert turns.ages_s()["go on"] < turns.ages_s()["hang"]


def run_until(steps, turns, holds, finally_=lambda: None):
    """Run the steps until something holds."""

    async def run():
        reaper = asyncio.create_task(run_steps(steps, turns, every_s=0.01))
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110 - it is polled
                await asyncio.sleep(0.01)
        finally_()
        reaper.cancel()
        await asyncio.wait([reaper])

    asyncio.run(run())


def test_a_stopped_process_that_locks_the_cache_keeps_the_reaper_from_nothing(
    redis_server, start, tmp_path, decomposition
):
    decomposition("ab" * 32)
    with stopped_holder(tmp_path / "decompositions" / ".lock"):
        service = start(reaper_s=0.1, lease_s=0.3, heartbeat_s=0.1)
        service.workers.refresh("w1", 60)
        job = service.submit(service.stored(MODEL)).json()["id"]
        redis_server.client().delete("eckart:broker:eckart")
        service.jobs.claim(job, new_token("dies"))

        until(lambda: queued_messages(redis_server) > 0)
        assert service.http.get("/readyz").status_code == 200


def test_a_reaper_that_sweeps_no_more_is_not_ready_and_its_age_is_measured(redis_server, start):
    service = start(reaper_s=0.1)
    service.workers.refresh("w1", 60)
    until(lambda: service.http.get("/readyz").status_code == 200)
    # What the sweep reads has another type than it expects.
    redis_server.client().delete("eckart:to_send")
    redis_server.client().set("eckart:to_send", "spoiled")

    until(lambda: service.http.get("/readyz").status_code == 503)
    missing = assert_problem(service.http.get("/readyz"), 503, "not-ready")
    assert [part["pointer"] for part in missing["errors"]] == ["/reaper"]
    metrics = service.http.get("/metrics").text
    (age,) = re.findall(r'eckart_reaper_age_seconds\{step="sweep jobs"\} ([0-9.]+)', metrics)
    assert float(age) > 0.1
