"""`service.access.quotas`: how much each owner may store, have waiting and upload at a time."""

import base64
import hashlib
import os
import re
import socket
import threading
import time
from contextlib import closing

import pytest

from schemas.problem import ProblemKind
from service.access.quotas import Quotas
from service.settings import Settings
from state.data_dir import DataDir
from state.files import Freed
from tests.service.files import FILES, checkpoint_bytes
from tests.service.running import SPEC, assert_problem, until

MODEL = checkpoint_bytes()
SMALL = checkpoint_bytes({"a": (1,)})
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
    assert service.jobs.fail(job, claim.fence, ProblemKind.WORKER_TROUBLE.problem("It failed."))
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


class HeldUpload:
    """An upload of MODEL by alice that pauses after some bytes."""

    def __init__(self, service, method, address, *, sent=8, **headers):
        self._rest = MODEL[sent:]
        self._connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
        lines = ALICE | {"Host": "localhost", "Content-Length": len(MODEL)} | headers
        head = f"{method} {address} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        before = received(service)
        self._connection.sendall(head.encode() + b"\r\n" + MODEL[:sent])
        until(lambda: received(service) == before + sent)

    def go_on(self):
        """Send the rest, and return the status of the answer."""
        self._connection.sendall(self._rest)
        return int(self._connection.recv(65536).split()[1])

    def close(self):
        self._connection.close()


def received(service):
    text = service.http.get("/metrics", headers=ALICE).text
    return float(re.search(r"^eckart_upload_bytes_total (\S+)", text, re.MULTILINE)[1])


def held_put(service, checkpoint_id, **options):
    return HeldUpload(service, "PUT", f"/v1/checkpoints/{checkpoint_id}/model.safetensors", **options)


def held_tus(service, checkpoint_id, **options):
    pairs = {"checkpoint": checkpoint_id, "filename": "model.safetensors"}
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())
    begin = ALICE | {"Upload-Length": str(len(MODEL)), "Upload-Metadata": metadata}
    location = service.http.post("/v1/uploads", headers=begin).headers["location"]
    headers = {"Upload-Offset": 0, "Content-Type": "application/offset+octet-stream"}
    return HeldUpload(service, "PATCH", location, **headers, **options)


@pytest.mark.parametrize("held", [held_put, held_tus])
def test_uploads_that_began_together_share_what_is_left(start, held):
    service = start(api_keys=KEYS, owner_bytes=int(1.5 * len(MODEL)))
    with closing(held(service, "m")) as first, closing(held(service, "n")) as second:
        assert first.go_on() in {201, 204}
        assert second.go_on() == 429
    assert service.http.get("/v1/checkpoints/n", headers=ALICE).status_code == 404


def held_with_checksum(service, checkpoint_id, **options):
    digest = base64.b64encode(hashlib.sha256(MODEL).digest()).decode()
    return held_tus(service, checkpoint_id, **{"Upload-Checksum": f"sha256 {digest}"}, **options)


@pytest.mark.parametrize("held", [held_put, held_with_checksum])
def test_a_deletion_forgets_no_upload_that_is_under_way(start, held):
    service = start(api_keys=KEYS, owner_bytes=int(1.5 * len(MODEL)) + len(SMALL))
    assert put(service, "old", ALICE, SMALL).status_code == 201
    with closing(held(service, "m", sent=len(MODEL) - 1)) as upload:
        assert service.http.delete("/v1/checkpoints/old", headers=ALICE).status_code == 204
        assert_over_quota(put(service, "n", ALICE))
        assert upload.go_on() in {201, 204}
    assert_over_quota(put(service, "n", ALICE))


def test_what_a_broken_upload_sent_is_given_back_at_once(start):
    service = start(api_keys=KEYS, owner_bytes=int(1.5 * len(MODEL)))
    with closing(held_put(service, "m", sent=len(MODEL) - 1)):
        assert_over_quota(put(service, "n", ALICE))
    until(lambda: service.leftovers() == [])
    until(lambda: put(service, "n", ALICE).status_code == 201, limit_s=10)


def test_a_deletion_makes_nobody_look_at_all_that_is_stored(start):
    service = start(api_keys=KEYS, owner_bytes=int(2.5 * len(MODEL)))
    assert put(service, "old", ALICE).status_code == 201
    # As if it was stored long before the service was started and summed.
    os.utime(DataDir(service.data_dir, "alice").manifest("old"), (1, 1))
    assert put(service, "kept", ALICE).status_code == 201
    DataDir(service.data_dir, "alice").manifest("kept").write_text("No sum can read this.")

    assert service.http.delete("/v1/checkpoints/old", headers=ALICE).status_code == 204
    assert put(service, "new", ALICE).status_code == 201
    assert_over_quota(put(service, "more", ALICE))


LIMIT = 100


def quotas():
    return Quotas(Settings(owner_bytes=LIMIT, redis_url="redis://127.0.0.1:1/0"))


def test_what_may_not_be_in_the_sum_is_summed_again_only_before_a_refusal():
    stored, checked = iter((60, 30)), quotas()

    def left(needed):
        return checked.left_bytes("a", lambda: next(stored), needed=needed)

    assert left(1) == 40
    checked.deleted("a", Freed(30, time.time()))
    assert left(40) == 40
    assert left(41) == 70
    assert left(70) == 70


def test_a_sum_that_missed_a_deletion_is_made_again_before_a_refusal():
    checked, sums = quotas(), []

    def stored_bytes():
        sums.append(1)
        if len(sums) == 1:
            checked.deleted("a", Freed(30, 1.0))
            return 60
        return 30

    assert checked.left_bytes("a", stored_bytes, needed=1) == 40
    assert checked.left_bytes("a", stored_bytes, needed=50) == 70


@pytest.mark.parametrize("kept", [False, True])
def test_what_arrives_and_ends_while_a_sum_is_made_is_not_forgotten(kept):
    checked = Quotas(Settings(owner_bytes=100))

    def walked_past_it():
        with checked.uploading("a", kept=kept) as count:
            count(30)
        return 0

    assert checked.left_bytes("a", walked_past_it) == 70
    assert checked.left_bytes("a", lambda: 30, needed=70) == 70


def test_an_old_sum_is_made_again_beside_the_request(monkeypatch):
    monkeypatch.setattr("service.access.quotas.SUM_FOR_S", 0)
    checked, going_on = quotas(), threading.Event()
    assert checked.left_bytes("a", lambda: 60) == 40

    def slow():
        going_on.wait(30)
        return 10

    assert checked.left_bytes("a", slow) == 40
    going_on.set()
    until(lambda: checked.left_bytes("a", lambda: 10) == 90)


def test_results_count_as_stored(start):
    service = start(owner_bytes=2 * len(MODEL) + len(FILES["model.safetensors"]))
    put(service, "m", {})
    job = submit(service, {}).json()["id"]
    service.finish(job, FILES)
    assert_over_quota(put(service, "n", {}, checkpoint_bytes({"a.weight": (20, 30)})))
    assert service.http.delete(f"/v1/jobs/{job}").status_code == 204
    assert put(service, "n", {}).status_code == 201
