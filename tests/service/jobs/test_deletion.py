"""`service.jobs.deletion`: jobs are deleted with what is theirs."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from state.cache.store import DecompositionCache
from state.data_dir import DataDir
from state.files import locked
from state.jobs.records import new_token
from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem

MODEL = checkpoint_bytes()
FILES = {"model.safetensors": MODEL}


@pytest.fixture
def stored(service):
    return service.stored(MODEL)


@pytest.fixture
def job(service, stored):
    return service.submit(stored).json()


@pytest.fixture
def brought(service):
    """Make a job that brings its checkpoint."""
    return service.submit_files(FILES).json()


@pytest.mark.parametrize("end", ["queued", "succeeded"])
def test_a_deleted_job_takes_the_checkpoint_that_it_brought(service, brought, end):
    if end == "succeeded":
        service.finish(brought["id"], FILES)

    assert service.http.delete(f"/v1/jobs/{brought['id']}").status_code == 204

    assert_problem(service.http.get(f"/v1/jobs/{brought['id']}"), 404, "job-not-found")
    assert_problem(service.http.get(f"/v1/checkpoints/{brought['checkpoint']}"), 404, "checkpoint-not-found")


def test_a_deleted_job_takes_what_was_decomposed_of_the_checkpoint_that_it_brought(start, tmp_path):
    service = start()
    job = service.submit_files(FILES).json()
    root = DataDir(tmp_path).decompositions
    for file in service.checkpoints.get(job["checkpoint"]).files:
        (root / file.sha256).mkdir(parents=True)
        (root / file.sha256 / "a.safetensors").write_bytes(b"some bytes")
    # As the reaper does at any time; it leaves a file for its lock.
    DecompositionCache.shared(tmp_path, limit_bytes=2**20).trim()

    assert service.http.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert not [entry for entry in root.iterdir() if entry.is_dir()]


def test_a_deleted_job_leaves_a_checkpoint_that_another_job_needs(service, brought):
    other = service.submit(brought["checkpoint"]).json()

    assert service.http.delete(f"/v1/jobs/{brought['id']}").status_code == 204

    assert service.http.get(f"/v1/checkpoints/{brought['checkpoint']}").json()["complete"] is True
    assert service.http.get(f"/v1/jobs/{other['id']}").json()["state"] == "queued"


def test_a_deleted_job_leaves_a_checkpoint_that_it_did_not_bring(service, stored, job, brought):
    guest = service.submit(brought["checkpoint"]).json()

    assert service.http.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert service.http.delete(f"/v1/jobs/{guest['id']}").status_code == 204

    assert service.http.get(f"/v1/checkpoints/{stored}").status_code == 200
    assert service.http.get(f"/v1/checkpoints/{brought['checkpoint']}").status_code == 200


def test_a_job_is_deleted_though_its_checkpoint_is_gone_already(service, brought):
    service.http.post(f"/v1/jobs/{brought['id']}/cancel")
    assert service.http.delete(f"/v1/checkpoints/{brought['checkpoint']}").status_code == 204

    assert service.http.delete(f"/v1/jobs/{brought['id']}").status_code == 204

    assert_problem(service.http.get(f"/v1/jobs/{brought['id']}"), 404, "job-not-found")


def test_a_deleted_job_is_gone_with_its_files(service, job):
    service.finish(job["id"], FILES)

    deleted = service.http.delete(f"/v1/jobs/{job['id']}")

    assert deleted.status_code == 204
    assert_problem(service.http.get(f"/v1/jobs/{job['id']}"), 404, "job-not-found")
    assert_problem(service.http.get(f"/v1/jobs/{job['id']}/checkpoint"), 404, "job-not-found")
    assert_problem(service.http.delete(f"/v1/jobs/{job['id']}"), 404, "job-not-found")
    assert not (service.data_dir / "jobs" / job["id"]).exists()


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_everything_can_be_deleted_though_redis_is_full(start, redis_server, state):
    service = start()
    job = service.submit_files(FILES).json()
    other = service.stored(MODEL)
    if state == "running":
        service.jobs.claim(job["id"], new_token("test"))
    if state == "succeeded":
        service.finish(job["id"], FILES)
    client = redis_server.client()
    client.config_set("maxmemory", 1)
    try:
        assert_problem(service.submit(other), 503, "store-unavailable")
        assert service.http.delete(f"/v1/jobs/{job['id']}").status_code == 204
        assert service.http.delete(f"/v1/checkpoints/{other}").status_code == 204
    finally:
        client.config_set("maxmemory", 0)
    assert_problem(service.http.get(f"/v1/jobs/{job['id']}"), 404, "job-not-found")
    assert_problem(service.http.get(f"/v1/checkpoints/{job['checkpoint']}"), 404, "checkpoint-not-found")


def test_jobs_are_kept_off_a_checkpoint_only_once_nobody_else_can_hold_up_its_deletion(service, stored):
    # An upload that is being published holds the lock, perhaps for longer than jobs are kept off.
    with ThreadPoolExecutor() as pool, locked(DataDir(service.data_dir).lock("checkpoint", stored)):
        deleted = pool.submit(service.http.delete, f"/v1/checkpoints/{stored}")
        with pytest.raises(TimeoutError):
            deleted.result(timeout=0.3)
        assert service.submit(stored).status_code == 202

    assert_problem(deleted.result(), 409, "checkpoint-in-use")
    assert service.http.get(f"/v1/checkpoints/{stored}").status_code == 200
