"""`maintenance.retention`: what ended goes in time, and nothing that is waiting or needed goes with it."""

import time
from contextlib import contextmanager

import pytest

from schemas.problem import ProblemKind
from service.app import open_services
from service.maintenance.retention import SteadyClock, remove_expired, remove_unowned
from state.data_dir import DataDir
from state.jobs.records import new_token
from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem, until

FILES = {"model.safetensors": checkpoint_bytes()}
WHY = ProblemKind.WORKER_TROUBLE.problem("It failed.")
HOUR_S = 3600
AT_ONCE = SteadyClock(steady_s=0)
# Far enough for the day after the jobs of a test.
DAYS = 40


@pytest.fixture
def ended_at(redis_server):
    """Return what makes a job look as if it had ended so many seconds ago, or ahead."""
    client = redis_server.client()

    def set_back(job_id, ago_s):
        assert client.zscore("eckart:ended", job_id) is not None
        client.zadd("eckart:ended", {job_id: (time.time() - ago_s) * 1e6})

    return set_back


@contextmanager
def services_of(running):
    services = open_services(running.settings)
    yield services
    services.close()


def finished(service, *, brought=True):
    if brought:
        job = service.submit_files(FILES).json()
    else:
        job = service.submit(service.stored(FILES["model.safetensors"])).json()
    service.finish(job["id"], FILES)
    return job


def test_a_job_says_when_it_goes_and_then_goes_with_all_that_is_its_own(start, ended_at):
    service = start(retention_hours=24)
    job, other = finished(service), finished(service, brought=False)
    shown = service.http.get(f"/v1/jobs/{job['id']}").json()
    listed = service.http.get("/v1/jobs").json()["jobs"][-1]

    assert shown["finished_at"] < shown["expires_at"] == listed["expires_at"]
    assert job["expires_at"] is None

    for each in (job, other):
        ended_at(each["id"], 24 * HOUR_S + 1)
    with services_of(service) as services:
        assert remove_expired(services, AT_ONCE) == 2
        assert remove_unowned(services) == 1
        assert remove_unowned(services) == 0

    assert_problem(service.http.get(f"/v1/jobs/{job['id']}"), 404, "job-not-found")
    assert_problem(service.http.get(f"/v1/checkpoints/{job['checkpoint']}"), 404, "checkpoint-not-found")
    assert service.http.get(f"/v1/checkpoints/{other['checkpoint']}").status_code == 200
    assert not list(DataDir(service.data_dir).jobs.iterdir())


@pytest.mark.parametrize("state", ["queued", "running"])
def test_what_waits_or_runs_stays_and_keeps_what_it_needs(start, ended_at, state):
    service = start(retention_hours=1)
    job = finished(service)
    guest = service.submit(job["checkpoint"]).json()
    if state == "running":
        service.jobs.claim(guest["id"], new_token("test"))
    ended_at(job["id"], DAYS * 24 * HOUR_S)
    with services_of(service) as services:
        assert remove_expired(services, AT_ONCE) == 1
        assert remove_unowned(services) == 0
        assert service.http.get(f"/v1/jobs/{guest['id']}").json()["state"] == state
        assert service.http.get(f"/v1/checkpoints/{job['checkpoint']}").status_code == 200

        # The checkpoint goes with the last job that needs it.
        service.http.post(f"/v1/jobs/{guest['id']}/cancel")
        assert remove_unowned(services) == 1
    assert_problem(service.http.get(f"/v1/checkpoints/{job['checkpoint']}"), 404, "checkpoint-not-found")


def test_a_checkpoint_that_a_deleted_job_shared_goes_when_the_other_ends(start):
    service = start(reaper_s=0.1)
    job = finished(service)
    guest = service.submit(job["checkpoint"]).json()
    assert service.http.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert service.http.get(f"/v1/checkpoints/{job['checkpoint']}").status_code == 200

    service.http.post(f"/v1/jobs/{guest['id']}/cancel")
    until(lambda: service.http.get(f"/v1/checkpoints/{job['checkpoint']}").status_code == 404)


def test_a_job_that_was_resumed_since_it_was_found_stays(start, ended_at):
    service = start(retention_hours=1)
    job = service.submit_files(FILES).json()["id"]
    claim = service.jobs.claim(job, new_token("test"))
    service.jobs.fail(job, claim.fence, WHY)
    ended_at(job, 2 * HOUR_S)
    with services_of(service) as services:
        services.jobs.resume(job)
        assert services.jobs.upkeep._expire(job, 3600 * 10**6) is False
    assert service.http.get(f"/v1/jobs/{job}").json()["state"] == "queued"


def test_without_a_limit_jobs_are_kept(start, ended_at):
    service = start(retention_hours=0)
    job = finished(service)["id"]
    ended_at(job, DAYS * 24 * HOUR_S)
    with services_of(service) as services:
        assert remove_expired(services, AT_ONCE) == 0
    assert service.http.get(f"/v1/jobs/{job}").json()["expires_at"] is None


def test_the_time_counts_on_across_restarts_and_losses_of_redis(start, redis_server):
    service = start(retention_hours=1)
    old, new = finished(service)["id"], finished(service)["id"]
    record = DataDir(service.data_dir).record(old)
    finished_at = service.jobs.get(old).finished_at
    record.write_text(record.read_text().replace(finished_at, "2020-01-01T00:00:00.000000Z"))
    redis_server.wipe()
    redis_server.restart()

    with services_of(service) as services:
        assert remove_expired(services, AT_ONCE) == 1
    assert_problem(service.http.get(f"/v1/jobs/{old}"), 404, "job-not-found")
    assert service.http.get(f"/v1/jobs/{new}").status_code == 200


def test_an_end_that_a_clock_ahead_has_stamped_counts_from_now(start, ended_at, redis_server):
    service = start(retention_hours=1)
    job = finished(service)["id"]
    ended_at(job, -DAYS * 24 * HOUR_S)
    with services_of(service) as services:
        assert remove_expired(services, AT_ONCE) == 0
    assert redis_server.client().zscore("eckart:ended", job) / 1e6 == pytest.approx(time.time(), abs=60)


def test_a_clock_that_was_just_set_removes_nothing():
    time_s = [1000.0]
    clock = SteadyClock(steady_s=600, monotonic=lambda: time_s[0])

    def look(after_s, *, ahead_s):
        time_s[0] += after_s
        return clock.is_steady(1e9 + time_s[0] + ahead_s)

    assert not look(0, ahead_s=0)
    assert not look(599, ahead_s=0)
    assert look(2, ahead_s=0)
    assert look(10, ahead_s=5)
    # Set forward by a year, and back again.
    assert not look(10, ahead_s=3e7)
    assert not look(300, ahead_s=3e7)
    assert not look(10, ahead_s=0)
    assert not look(599, ahead_s=0)
    assert look(2, ahead_s=0)


def test_jobs_expire_though_redis_is_full(start, ended_at, redis_server):
    service = start(retention_hours=1)
    old, ahead = finished(service)["id"], finished(service)["id"]
    ended_at(old, 2 * HOUR_S)
    ended_at(ahead, -2 * HOUR_S)
    client = redis_server.client()
    client.config_set("maxmemory", 1)
    try:
        with services_of(service) as services:
            assert remove_expired(services, AT_ONCE) == 1
            assert remove_unowned(services) == 1
    finally:
        client.config_set("maxmemory", 0)
