"""`service.jobs.submission`: jobs are created once."""

import threading

import pytest

from tests.service.files import FILES, MODEL, checkpoint_bytes, sharded_set
from tests.service.running import SPEC, assert_problem


def test_a_job_for_a_stored_checkpoint_is_accepted_with_all_its_fields(service, stored):
    accepted = service.submit(stored)

    body = accepted.json()
    here = f"/v1/jobs/{body['id']}"
    assert accepted.status_code == 202
    assert accepted.headers["location"] == here
    assert body["state"] == "queued"
    assert body["checkpoint"] == stored
    assert body["spec"]["method"] == "svd"
    assert body["progress"] == {"layers_done": 0, "layers_total": 0, "layer": None, "fraction": 0.0}
    assert body["attempt"] == 0
    assert body["queue_position"] >= 0
    assert [body[name] for name in ("started_at", "finished_at", "expires_at", "error", "summary")] == [
        None
    ] * 5
    assert body["links"] == {
        "self": here,
        "report": f"{here}/report",
        "checkpoint": f"{here}/checkpoint",
        "files": f"{here}/files/{{filename}}",
        "archive": f"{here}/archive",
        "events": f"{here}/events",
        "cancel": f"{here}/cancel",
    }
    assert body == service.http.get(here).json()


def test_a_checkpoint_serves_any_number_of_jobs(service, stored):
    assert len({service.submit(stored).json()["id"] for _ in range(3)}) == 3


def test_patterns_that_match_nothing_are_warnings_and_no_refusals(service, stored):
    accepted = service.submit(stored, {"rank": 2, "include": ["nothing.*"]})

    assert accepted.status_code == 202
    assert len(accepted.json()["warnings"]) == 2


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_an_unknown_checkpoint_is_not_found(service, path):
    refused = service.http.post(path, json={"checkpoint": "nobody", "spec": SPEC})

    body = assert_problem(refused, 404, "checkpoint-not-found")
    assert [each["pointer"] for each in body["errors"]] == ["/checkpoint"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_an_incomplete_checkpoint_is_a_conflict_that_names_what_is_missing(service, path):
    files = sharded_set(2)
    first, second, index = files
    name = service.stored(files[first], first)
    service.put(name, index, files[index])

    refused = service.http.post(path, json={"checkpoint": name, "spec": SPEC})

    assert second in assert_problem(refused, 409, "checkpoint-incomplete")["detail"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_files_side_by_side_without_an_index_are_a_conflict_that_names_both_ways_out(service, path):
    name = service.stored(MODEL, "a.safetensors")
    assert service.put(name, "b.safetensors", MODEL).status_code == 201

    refused = service.http.post(path, json={"checkpoint": name, "spec": SPEC})

    assert assert_problem(refused, 409, "checkpoint-incomplete")["detail"] == (
        "The checkpoint lacks the index of a.safetensors and b.safetensors. Upload what is missing; "
        "a file that needs no index can be stored under an id of its own."
    )


def test_a_job_of_files_without_an_index_is_refused_with_both_ways_out(service):
    refused = service.submit_files({"a.safetensors": MODEL, "b.safetensors": MODEL})

    detail = assert_problem(refused, 422, "invalid-checkpoint:missing-files")["detail"]
    assert "a.safetensors and b.safetensors but no index" in detail
    assert "each file in a request of its own" in detail


def test_a_repeated_key_returns_the_first_job(service, stored):
    headers = {"Idempotency-Key": f"key-{stored}"}

    first, again = service.submit(stored, **headers), service.submit(stored, **headers)

    assert first.status_code == again.status_code == 202
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["location"] == again.headers["location"]


def test_a_repeated_key_for_another_request_is_refused(service, stored):
    headers = {"Idempotency-Key": f"key-{stored}"}
    service.submit(stored, **headers)

    assert_problem(service.submit(stored, {"rank": 1}, **headers), 422, "idempotency-mismatch")
    other = service.stored(MODEL)
    assert_problem(service.submit(other, **headers), 422, "idempotency-mismatch")
    assert_problem(service.submit_files(FILES, **headers), 422, "idempotency-mismatch")


def test_a_repeated_multipart_body_returns_the_first_job_and_keeps_no_second_copy(service, stored):
    headers = {"Idempotency-Key": f"upload-{stored}"}
    first = service.submit_files(FILES, **headers).json()
    before = set((service.data_dir / "checkpoints").iterdir())

    again = service.submit_files(FILES, **headers).json()
    refused = service.submit_files({"model.safetensors": checkpoint_bytes(fill=9)}, **headers)

    assert again["id"] == first["id"]
    assert again["checkpoint"] == first["checkpoint"]
    assert_problem(refused, 422, "idempotency-mismatch")
    assert set((service.data_dir / "checkpoints").iterdir()) == before


def test_the_same_key_at_the_same_time_makes_one_job(service, stored):
    ids = []

    def submit():
        ids.append(service.submit(stored, **{"Idempotency-Key": f"race-{stored}"}).json()["id"])

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ids) == 8
    assert len(set(ids)) == 1


@pytest.mark.parametrize("key", ["", "with space", "k" * 256])
def test_a_key_that_cannot_be_is_refused(service, stored, key):
    assert_problem(service.submit(stored, **{"Idempotency-Key": key}), 422, "invalid-request")


def test_a_layer_that_no_worker_has_the_memory_for_is_refused_before_the_202(start):
    service = start()
    content = checkpoint_bytes({"small.weight": (8, 8), "large.weight": (64, 64)})
    name = service.stored(content)
    needed = 3 * 64 * 64 * 4
    service.workers.refresh("w", 60, memory_bytes=needed - 1)

    for answer in (service.submit(name), service.submit_files({"model.safetensors": content})):
        detail = assert_problem(answer, 507, "out-of-memory")["detail"]
        assert detail == (
            f'"large" needs {needed} bytes of memory or more, and no worker may use more than {needed - 1}. '
            "Exclude it, or give a worker more memory."
        )
    assert service.submit(name, {"rank": 1, "exclude": ["large"]}).status_code == 202
    service.workers.refresh("w", 60, memory_bytes=needed)
    assert service.submit(name).status_code == 202
