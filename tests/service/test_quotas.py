"""`service.quotas`: how much each owner may store, have waiting and upload at a time."""

import socket

import pytest

from schemas.problem import ProblemKind
from tests.service.files import FILES, checkpoint_bytes
from tests.service.running import SPEC, assert_problem, until

MODEL = checkpoint_bytes()
KEYS = "alice:of-alice,bob:of-bob"
ALICE, BOB = ({"X-API-Key": f"of-{name}"} for name in ("alice", "bob"))


def put(service, checkpoint_id, key, content=MODEL):
    address = f"/v1/checkpoints/{checkpoint_id}/model.safetensors"
    return service.http.put(address, content=content, headers=key)


def submit(service, key):
    return service.http.post("/v1/jobs", json={"checkpoint": "m", "spec": SPEC}, headers=key)


def form(service, key):
    parts = {"files": [("checkpoint", ("m.safetensors", MODEL))], "data": {"spec": '{"rank": 1}'}}
    return service.http.post("/v1/jobs", headers=key, **parts)


def assert_over_quota(answer):
    assert_problem(answer, 429, "over-quota")
    assert int(answer.headers["retry-after"]) > 0


def test_each_owner_has_as_many_jobs_waiting_as_allowed(start):
    service = start(api_keys=KEYS, owner_jobs=2)
    for key in (ALICE, BOB):
        put(service, "m", key)
        first = submit(service, key).json()["id"]
        assert submit(service, key).status_code == 202
        assert_over_quota(submit(service, key))
        assert_over_quota(form(service, key))
        service.finish(first, FILES)
        assert submit(service, key).status_code == 202
    assert service.leftovers() == []


def test_a_failed_job_that_goes_on_waits_too(start):
    service = start(owner_jobs=1)
    put(service, "m", {})
    job = submit(service, {}).json()["id"]
    claim = service.jobs.claim(job, "t")
    assert service.jobs.fail(job, claim.fence, ProblemKind.TOO_LARGE.problem("It failed."))
    assert submit(service, {}).status_code == 202
    assert_over_quota(service.http.post(f"/v1/jobs/{job}/resume"))


def test_a_repeated_request_is_no_further_job(start):
    service = start(owner_jobs=1)
    put(service, "m", {})
    made = [submit(service, {"Idempotency-Key": "k"}) for _ in range(2)]
    assert [answer.status_code for answer in made] == [202, 202]


def test_each_owner_has_as_many_uploads_under_way_as_allowed(start):
    service = start(api_keys=KEYS, owner_uploads=1)
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(
            b"PUT /v1/checkpoints/slow/model.safetensors HTTP/1.1\r\nHost: localhost\r\n"
            b"X-API-Key: of-alice\r\nContent-Length: %d\r\n\r\n" % len(MODEL) + MODEL[:8]
        )
        until(lambda: service.leftovers() != [])
        assert_over_quota(put(service, "m", ALICE))
        assert_over_quota(form(service, ALICE))
        assert put(service, "m", BOB).status_code == 201
    until(lambda: put(service, "m", ALICE).status_code == 201)


def chunked():
    yield MODEL[:100]
    yield MODEL[100:]


@pytest.mark.parametrize("content", [MODEL, chunked])
def test_each_owner_stores_as_much_as_allowed(start, content):
    service = start(api_keys=KEYS, owner_bytes=int(2.5 * len(MODEL)))
    for key in (ALICE, BOB):
        for checkpoint_id in ("m", "n"):
            assert put(service, checkpoint_id, key).status_code == 201
        assert_over_quota(put(service, "o", key, content() if callable(content) else content))
        assert service.http.get("/v1/checkpoints/o", headers=key).status_code == 404
        assert service.http.delete("/v1/checkpoints/n", headers=key).status_code == 204
        assert put(service, "o", key).status_code == 201
    assert service.leftovers() == []


def test_results_count_as_stored(start):
    service = start(owner_bytes=2 * len(MODEL) + len(FILES["model.safetensors"]))
    put(service, "m", {})
    job = submit(service, {}).json()["id"]
    service.finish(job, FILES)
    assert_over_quota(put(service, "n", {}, checkpoint_bytes({"a.weight": (20, 30)})))
    assert service.http.delete(f"/v1/jobs/{job}").status_code == 204
    assert put(service, "n", {}).status_code == 201
