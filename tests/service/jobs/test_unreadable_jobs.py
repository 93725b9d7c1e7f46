"""A job that another release wrote, or that is damaged: shown as such, served and deleted; never a 500."""

import json

import pytest

from state.data_dir import DataDir
from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem

MODEL = checkpoint_bytes()
FILES = {"model.safetensors": MODEL}
UNREADABLE = "urn:eckart:problem:unreadable-record"


@pytest.fixture
def harmed(start):
    """Return what makes a job whose record has other contents, as another release has them."""
    service = start()

    def make(*, finished=False, **fields):
        job_id = service.submit(service.stored(MODEL)).json()["id"]
        if finished:
            service.finish(job_id, FILES)
        path = DataDir(service.data_dir).record(job_id)
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return service, f"/v1/jobs/{job_id}"

    return make


def error_type(job):
    return job["error"] and job["error"]["type"]


@pytest.mark.parametrize("fields", [{"files": 7}, {"spec": 7}, {"warnings": [{}], "spec": {"new": 1}}])
def test_a_record_of_another_release_is_listed_shown_canceled_and_deleted(harmed, fields):
    service, here = harmed(**fields)
    (listed,) = service.http.get("/v1/jobs").json()["jobs"]
    shown = service.http.get(here)
    assert shown.status_code == 200
    assert (listed["error"], error_type(shown.json())) == (None, UNREADABLE)
    assert listed["state"] == shown.json()["state"] == "queued"
    assert service.http.post(f"{here}/cancel").json()["state"] == "canceled"
    assert service.http.delete(here).status_code == 204
    assert_problem(service.http.get(here), 404, "job-not-found")


def test_a_spec_of_a_newer_release_is_shown_as_it_is_and_as_unreadable_until_the_job_has_ended(harmed):
    spec = {"method": "dream", "rank": {"by_magic": 3}}
    service, here = harmed(spec=spec)
    job = service.http.get(here).json()
    assert (job["spec"], job["state"], error_type(job)) == (spec, "queued", UNREADABLE)
    assert service.http.post(f"{here}/cancel").json()["error"] is None


@pytest.mark.parametrize("lost", ["job.json", "record"])
def test_the_result_of_a_record_that_cannot_be_read_is_served(harmed, redis_server, lost):
    service, here = harmed(finished=True, files=7)
    if lost == "job.json":
        DataDir(service.data_dir).record(here.removeprefix("/v1/jobs/")).write_text("{")
        redis_server.wipe()
    job = service.http.get(here).json()
    assert (job["state"], error_type(job)) == ("succeeded", UNREADABLE)
    for path in ("files/model.safetensors", "files/report.json", "report", "archive"):
        assert service.http.get(f"{here}/{path}").status_code == 200, path
    assert service.http.get(f"{here}/files/model.safetensors").content == MODEL
    assert service.http.delete(here).status_code == 204


def test_a_result_without_a_report_that_can_be_read_is_said_to_be_unreadable(harmed):
    service, here = harmed(finished=True)
    result = DataDir(service.data_dir).result(here.removeprefix("/v1/jobs/"), 1)
    (result / "report.json").write_text('{"output": 7}')
    for path in ("files/model.safetensors", "checkpoint", "report", "archive"):
        assert_problem(service.http.get(f"{here}/{path}"), 501, "unreadable-record")
    assert service.http.delete(here).status_code == 204


def as_directory(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "empty": "",
    "cut": '{"id": "J',
    "no object": "[]",
    "null": "null",
    "no text": b"\xff\x00\x80",
    "zeros": bytes(4096),
    "too deep": '{"spec": ' + "[" * 200_000,
    "too long a number": '{"version": ' + "7" * 5000 + "}",
    "without essentials": "{}",
    "no time": {"created_at": "noon"},
    "a time without a zone": {"created_at": "2026-01-02T03:04:05"},
    "no state": {"state": "dreaming"},
    "no version": {"version": "new"},
    "no text as owner": {"owner": 7},
    "no fence": {"fence": 1e400},
    "a directory": as_directory,
}


def damage(path, how):
    if callable(how):
        how(path)
    elif isinstance(how, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | how))
    else:
        path.write_bytes(how if isinstance(how, bytes) else how.encode())


@pytest.mark.parametrize("finished", [False, True], ids=["queued", "succeeded"])
@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
def test_a_file_damaged_behind_redis_is_shown_as_such_kept_and_deleted(service, stored, how, finished):
    job_id = service.submit(stored).json()["id"]
    if finished:
        service.finish(job_id, FILES)
    path = DataDir(service.data_dir).record(job_id)
    damage(path, how)
    here = f"/v1/jobs/{job_id}"
    state = "succeeded" if finished else "queued"

    assert job_id in {each["id"] for each in service.http.get("/v1/jobs").json()["jobs"]}
    for address in (here, f"{here}?wait=0.01"):
        shown = service.http.get(address)
        assert shown.status_code == 200, shown.text
        assert (shown.json()["state"], error_type(shown.json())) == (state, UNREADABLE)
    assert_problem(service.http.post(f"{here}/resume"), 501, "unreadable-record")
    report = service.http.get(f"{here}/report")
    assert report.status_code == (200 if finished else 409)
    assert path.exists()
    assert service.http.post(f"{here}/cancel").status_code == 200
    assert path.exists()
    assert service.http.delete(here).status_code == 204
    assert_problem(service.http.get(here), 404, "job-not-found")
    assert not path.exists()
