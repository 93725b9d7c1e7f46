"""Jobs are made once, watched cheaply, and end as they should."""

import json
import threading
import time

import httpx
import pytest

from schemas.job import Progress
from schemas.problem import problem
from state.data_dir import DataDir
from state.records import new_token
from tests.service.files import checkpoint_bytes, sharded_set
from tests.service.running import SPEC, assert_problem

MODEL = checkpoint_bytes()
FILES = {"model.safetensors": MODEL}


@pytest.fixture
def stored(service):
    return service.stored(MODEL)


@pytest.fixture
def job(service, stored):
    return service.submit(stored).json()


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
@pytest.mark.parametrize(
    ("body", "slug"),
    [
        (b"", "invalid-json"),
        (b"{", "invalid-json"),
        (b"\xff\xfe", "invalid-json"),
        (b"\xef\xbb\xbf{}", "invalid-json"),
        (b'{"checkpoint": "a", "checkpoint": "b", "spec": {"rank": 1}}', "invalid-json"),
        (b'{"checkpoint": "a", "spec": {"rank": {"ratio": NaN}}}', "invalid-json"),
        (b'{"checkpoint": "a", "spec": {"rank": {"ratio": -Infinity}}}', "invalid-json"),
        (b'{"checkpoint": "a", "spec": {"rank": {"ratio": 1e999}}}', "invalid-json"),
        (b'{"checkpoint": "a", "spec": {"rank": %s}}' % (b"9" * 5000), "invalid-json"),
        (b'{"checkpoint": "\\ud800", "spec": {"rank": 1}}', "invalid-json"),
        (b"[" * 100_000, "invalid-json"),
        (b"[" * 500 + b"]" * 500, "invalid-spec"),
        (b"[]", "invalid-spec"),
        (b"null", "invalid-spec"),
        (b'"text"', "invalid-spec"),
        (b"{}", "invalid-spec"),
    ],
)
def test_broken_json_is_refused(service, path, body, slug):
    refused = service.http.post(path, content=body, headers={"Content-Type": "application/json"})

    assert_problem(refused, 422, slug)


@pytest.mark.parametrize(
    ("document", "pointers"),
    [
        ({"checkpoint": "a"}, ["/spec"]),
        ({"checkpoint": 7, "spec": SPEC}, ["/checkpoint"]),
        ({"checkpoint": "../a", "spec": SPEC}, ["/checkpoint"]),
        ({"checkpoint": "a", "spec": {}}, ["/spec/rank"]),
        ({"checkpoint": "a", "spec": {"rank": 0}}, ["/spec/rank"]),
        ({"checkpoint": "a", "spec": {"rank": "4"}}, ["/spec/rank"]),
        ({"checkpoint": "a", "spec": {"rank": {}}}, ["/spec/rank"]),
        ({"checkpoint": "a", "spec": {"rank": {"ratio": 2}}}, ["/spec/rank/ratio"]),
        ({"checkpoint": "a", "spec": {"rank": {"ratio": "nobody-knows"}}}, ["/spec/rank/ratio"]),
        ({"checkpoint": "a", "spec": {"rank": {"ratio": True}}}, ["/spec/rank/ratio"]),
        ({"checkpoint": "a", "spec": {"rank": {"budget": 2}}}, ["/spec/rank/budget"]),
        ({"checkpoint": "a", "spec": {"rank": {"budget_bytes": 0}}}, ["/spec/rank/budget_bytes"]),
        ({"checkpoint": "a", "spec": {"rank": 4, "calibration": "../x"}}, ["/spec/calibration"]),
        ({"checkpoint": "a", "spec": {"rank": 4, "transposed": "x"}}, ["/spec/transposed"]),
        ({"checkpoint": "a", "spec": {"rank": 4, "metod": "nobody-knows"}}, ["/spec/metod"]),
        ({"checkpoint": "a", "spec": {"rank": 4, "a/b~": 1}}, ["/spec/a~1b~0"]),
        (
            {"checkpoint": "a", "spec": {"rank": 4, "seed": -1, "method": "qr"}},
            ["/spec/method", "/spec/seed"],
        ),
        ({"checkpoint": "a", "spec": {"rank": 4, "overrides": [{"match": ""}]}}, ["/spec/overrides/0/match"]),
        ({"checkpoint": "a", "spec": SPEC, "priority": 1}, ["/priority"]),
    ],
)
def test_bad_fields_are_named_by_pointer_and_never_echoed(service, document, pointers):
    refused = service.http.post("/v1/jobs", json=document)

    body = assert_problem(refused, 422, "invalid-spec")
    assert sorted(error["pointer"] for error in body["errors"]) == pointers
    assert all(error["detail"] for error in body["errors"])
    assert "nobody-knows" not in refused.text


def test_a_flood_of_bad_fields_gets_a_short_answer(service):
    spec = {"rank": 4, "overrides": [{"match": ""}] * 10_000}

    refused = service.http.post("/v1/jobs", json={"checkpoint": "a", "spec": spec})

    body = assert_problem(refused, 422, "invalid-spec")
    assert len(body["errors"]) == 50
    assert "10000" in body["detail"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_more_patterns_than_can_be_matched_in_time_are_refused(service, path):
    name = service.stored(checkpoint_bytes({f"layer.{i}.weight": (1, 1) for i in range(2000)}))
    spec = {"rank": 4, "include": ["x"] * 10_000}

    refused = service.http.post(path, json={"checkpoint": name, "spec": spec})

    assert "patterns" in assert_problem(refused, 422, "invalid-spec")["detail"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_an_unknown_checkpoint_is_not_found(service, path):
    refused = service.http.post(path, json={"checkpoint": "nobody", "spec": SPEC})

    assert_problem(refused, 404, "checkpoint-not-found")


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
        "It holds a.safetensors and b.safetensors but no index: "
        "upload their index, or store each file under an id of its own."
    )


def test_a_job_of_files_without_an_index_is_refused_with_both_ways_out(service):
    refused = service.one_shot({"a.safetensors": MODEL, "b.safetensors": MODEL})

    detail = assert_problem(refused, 422, "invalid-checkpoint:missing-files")["detail"]
    assert "a.safetensors and b.safetensors but no index" in detail
    assert "each file in a request of its own" in detail


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_json_by_another_name_is_refused(service, path):
    body = json.dumps({"checkpoint": "a", "spec": SPEC})

    refused = service.http.post(path, content=body, headers={"Content-Type": "text/plain"})

    assert_problem(refused, 415, "unsupported-media-type")


def test_a_json_body_over_its_limit_is_refused_announced_or_not(service):
    big = b'{"checkpoint": "' + b"a" * 2**20 + b'"}'
    for path in ("/v1/jobs", "/v1/plans"):
        for content in (big, iter([big])):
            refused = service.http.post(path, content=content, headers={"Content-Type": "application/json"})
            assert_problem(refused, 413, "too-large")


def test_a_compressed_json_body_is_refused(service):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}

    assert_problem(service.http.post("/v1/plans", content=b"{}", headers=headers), 415, "encoded-body")


def test_a_plan_says_what_would_happen_and_makes_nothing(service):
    name = service.stored(checkpoint_bytes({"a.weight": (64, 64), "b.weight": (2, 2)}))
    before = service.http.get("/v1/jobs").json()

    plan = service.http.post("/v1/plans", json={"checkpoint": name, "spec": {"rank": 8}})

    assert plan.status_code == 200
    body = plan.json()
    assert [layer["rank"] for layer in body["layers"]] == [8, None]
    assert [layer["reason"] for layer in body["layers"]] == [None, "no_saving"]
    assert body["totals"]["parameters_after"] == 8 * 128 + 4
    assert service.http.get("/v1/jobs").json() == before


def test_a_status_has_a_tag_that_spares_the_next_answer(service, job):
    here = f"/v1/jobs/{job['id']}"
    first = service.http.get(here)

    same = service.http.get(here, headers={"If-None-Match": first.headers["etag"]})
    weak = service.http.get(here, headers={"If-None-Match": f'"else", W/{first.headers["etag"]}'})
    service.http.post(f"{here}/cancel")
    changed = service.http.get(here, headers={"If-None-Match": first.headers["etag"]})

    assert same.status_code == weak.status_code == 304
    assert same.content == b""
    assert changed.status_code == 200
    assert changed.headers["etag"] != first.headers["etag"]


def test_retry_after_is_given_until_the_job_has_ended(service, job):
    here = f"/v1/jobs/{job['id']}"

    assert int(service.http.get(here).headers["retry-after"]) > 0
    service.http.post(f"{here}/cancel")
    assert "retry-after" not in service.http.get(here).headers


def test_waiting_ends_when_the_state_changes(service, job):
    answers = []

    def wait():
        answers.append(service.http.get(f"/v1/jobs/{job['id']}", params={"wait": 30}))

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.3)
    assert answers == []
    service.finish(job["id"], FILES)
    waiter.join(10)

    assert answers[0].json()["state"] in {"running", "succeeded"}


def test_waiting_ends_when_the_time_is_up(service, job):
    answer = service.http.get(f"/v1/jobs/{job['id']}", params={"wait": 0.2})

    assert answer.json()["state"] == "queued"


def test_waiting_ends_when_the_service_stops(start):
    service = start()
    job = service.submit(service.stored(MODEL)).json()["id"]
    answers = []

    def wait():
        answers.append(httpx.get(f"{service.url}/v1/jobs/{job}", params={"wait": 60}, timeout=30))

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.3)
    service.__exit__()
    waiter.join(10)

    assert answers[0].json()["state"] == "queued"


def test_waiting_for_a_job_that_has_ended_ends_at_once(service, job):
    service.finish(job["id"], FILES)

    answer = service.http.get(f"/v1/jobs/{job['id']}", params={"wait": 60}, timeout=5)

    assert answer.json()["state"] == "succeeded"


@pytest.mark.parametrize("wait", ["-1", "61", "x", "nan", "inf", "1e9"])
def test_a_wait_that_makes_no_sense_is_refused(service, job, wait):
    refused = service.http.get(f"/v1/jobs/{job['id']}", params={"wait": wait})

    body = assert_problem(refused, 422, "invalid-request")
    assert body["errors"][0]["pointer"] == "/query/wait"


def test_a_running_job_shows_its_progress(service, job):
    claim = service.jobs.claim(job["id"], new_token("test"))
    progress = Progress(layers_done=1, layers_total=4, layer="layer.1", fraction=0.25)
    service.jobs.heartbeat(job["id"], claim.fence, progress)

    body = service.http.get(f"/v1/jobs/{job['id']}").json()

    assert body["state"] == "running"
    assert body["progress"] == progress.model_dump()
    assert body["attempt"] == 1
    assert body["queue_position"] is None
    assert body["started_at"] >= body["created_at"]


def test_a_failed_job_shows_its_problem(service, job):
    claim = service.jobs.claim(job["id"], new_token("test"))
    why = problem("out-of-memory", "Out of memory", 500, "Give the worker more memory.")
    service.jobs.fail(job["id"], claim.fence, why)

    answer = service.http.get(f"/v1/jobs/{job['id']}")

    assert answer.status_code == 200
    assert answer.json()["state"] == "failed"
    assert answer.json()["error"] == why.model_dump(mode="json")


def test_a_succeeded_job_shows_its_totals(service, job):
    service.finish(job["id"], FILES)

    body = service.http.get(f"/v1/jobs/{job['id']}").json()

    assert body["state"] == "succeeded"
    assert body["summary"]["parameter_savings"] == 0.4444
    assert body["progress"]["fraction"] == 1.0


def test_cancelling_ends_a_job_and_changes_nothing_of_one_that_has_ended(service, stored):
    queued, running, done = (service.submit(stored).json()["id"] for _ in range(3))
    claim = service.jobs.claim(running, new_token("test"))
    service.finish(done, FILES)

    states = {
        name: service.http.post(f"/v1/jobs/{name}/cancel").json()["state"] for name in (queued, running, done)
    }

    assert states == {queued: "canceled", running: "canceled", done: "succeeded"}
    assert service.jobs.heartbeat(running, claim.fence) is False
    assert service.http.post(f"/v1/jobs/{queued}/cancel").status_code == 200


@pytest.fixture
def brought(service):
    """Make a job that brings its checkpoint."""
    return service.one_shot(FILES).json()


@pytest.mark.parametrize("end", ["queued", "succeeded"])
def test_a_deleted_job_takes_the_checkpoint_that_it_brought(service, brought, end):
    if end == "succeeded":
        service.finish(brought["id"], FILES)

    assert service.http.delete(f"/v1/jobs/{brought['id']}").status_code == 204

    assert_problem(service.http.get(f"/v1/jobs/{brought['id']}"), 404, "job-not-found")
    assert_problem(service.http.get(f"/v1/checkpoints/{brought['checkpoint']}"), 404, "checkpoint-not-found")


def test_a_deleted_job_takes_what_was_decomposed_of_the_checkpoint_that_it_brought(start, tmp_path):
    service = start()
    job = service.one_shot(FILES).json()
    for file in service.checkpoints.get(job["checkpoint"]).files:
        folder = DataDir(tmp_path).decompositions / file.sha256
        folder.mkdir(parents=True)
        (folder / "a.safetensors").write_bytes(b"some bytes")

    assert service.http.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert not any(DataDir(tmp_path).decompositions.iterdir())


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


@pytest.mark.parametrize("name", ["J0", "J" + "0" * 32, "nobody", "..", "%00", "J%0a", "caf%C3%A9", "*"])
@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/report"),
        ("GET", "/checkpoint"),
        ("GET", "/files/model.safetensors"),
    ],
)
def test_an_unknown_job_is_not_found(service, name, method, rest):
    answer = service.raw(
        f"{method} /v1/jobs/{name}{rest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"application/problem+json" in answer
    assert b"job-not-found" in answer


def test_jobs_are_listed_newest_first_page_by_page(start):
    service = start()
    stored = service.stored(MODEL)
    made = [service.submit(stored).json()["id"] for _ in range(5)]
    service.http.post(f"/v1/jobs/{made[0]}/cancel")

    pages, cursor = [], None
    while True:
        page = service.http.get(
            "/v1/jobs", params={"limit": 2} | ({"cursor": cursor} if cursor else {})
        ).json()
        pages.append([job["id"] for job in page["jobs"]])
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert pages == [made[:2:-1], made[2:0:-1], made[:1]]
    canceled = service.http.get("/v1/jobs", params={"state": "canceled"}).json()["jobs"]
    assert [job["id"] for job in canceled] == made[:1]


@pytest.mark.parametrize(
    "query", ["state=lost", "limit=0", "limit=201", "limit=x", "cursor=x", "cursor=-1", "cursor=" + "9" * 300]
)
def test_a_list_that_makes_no_sense_is_refused(service, query):
    assert_problem(service.http.get(f"/v1/jobs?{query}"), 422, "invalid-request")


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
    assert_problem(service.one_shot(FILES, **headers), 422, "idempotency-mismatch")


def test_a_repeated_form_returns_the_first_job_and_keeps_no_second_copy(service, stored):
    headers = {"Idempotency-Key": f"form-{stored}"}
    first = service.one_shot(FILES, **headers).json()
    before = set((service.data_dir / "checkpoints").iterdir())

    again = service.one_shot(FILES, **headers).json()
    refused = service.one_shot({"model.safetensors": checkpoint_bytes(fill=9)}, **headers)

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
