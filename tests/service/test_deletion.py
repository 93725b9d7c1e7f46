"""`service.deletion`: jobs are deleted with what is theirs."""

import pytest

from state.cache import DecompositionCache
from state.data_dir import DataDir
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
