"""`service.jobs.preconditions`: `If-Match` of a deletion."""

import pytest

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


def test_a_job_is_deleted_only_if_its_etag_is_still_right(service, job):
    here = f"/v1/jobs/{job['id']}"
    old = service.http.get(here).headers["etag"]
    service.finish(job["id"], FILES)
    for wrong in (old, '"else"', ""):
        refused = service.http.delete(here, headers={"If-Match": wrong})
        assert_problem(refused, 412, "precondition-failed")
    etag = refused.headers["etag"]
    assert service.http.get(here).headers["etag"] == etag
    assert service.http.delete(here, headers={"If-Match": f"W/{etag}"}).status_code == 412
    assert service.http.delete(here, headers={"If-Match": f"{old}, {etag}"}).status_code == 204
    assert service.http.delete(here, headers={"If-Match": etag}).status_code == 404


def test_a_checkpoint_has_no_etag_that_could_match(service, stored):
    here = f"/v1/checkpoints/{stored}"
    etag = service.put(stored, "model.safetensors", MODEL).headers["etag"]
    for wrong in (etag, '"else"', ""):
        assert_problem(service.http.delete(here, headers={"If-Match": wrong}), 412, "precondition-failed")
    assert service.http.get(here).status_code == 200
    assert service.http.delete(here, headers={"If-Match": "*"}).status_code == 204
    for unknown in (etag, "*"):
        assert service.http.delete(here, headers={"If-Match": unknown}).status_code == 404
