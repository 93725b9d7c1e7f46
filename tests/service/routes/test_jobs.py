"""`service.routes.jobs`: listing and cancelling jobs, and unknown ids."""

import pytest

from schemas.problem import ProblemKind
from state.jobs.records import new_token
from tests.service.files import FILES, MODEL
from tests.service.running import assert_problem


def test_cancelling_ends_a_job_and_changes_nothing_of_one_that_has_ended(service, stored):
    queued, running, done = (service.submit(stored).json()["id"] for _ in range(3))
    claim = service.jobs.claim(running, new_token("test"))
    service.finish(done, FILES)

    states = {
        name: service.http.post(f"/v1/jobs/{name}/cancel").json()["state"] for name in (queued, running, done)
    }

    assert states == {queued: "canceled", running: "canceled", done: "succeeded"}
    assert service.jobs.renew_lease(running, claim.fence) is False
    assert service.http.post(f"/v1/jobs/{queued}/cancel").status_code == 200


@pytest.mark.parametrize("name", ["J0", "J" + "0" * 32, "nobody", "..", "%00", "J%0a", "caf%C3%A9", "*"])
@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/resume"),
        ("GET", "/report"),
        ("GET", "/checkpoint"),
        ("GET", "/files/model.safetensors"),
    ],
)
def test_an_unknown_job_is_not_found(service, name, method, rest):
    answer = service.raw(
        f"{method} /v1/jobs/{name}{rest} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
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


def test_a_list_shows_no_specs_and_reads_none(start):
    service = start()
    stored = service.stored(MODEL)
    patterns = [f"layer.{'x' * 200}.{number}" for number in range(200)]
    job = service.submit(stored, {"rank": 1, "include": ["*", *patterns]}).json()

    answer = service.http.get("/v1/jobs")

    (listed,) = answer.json()["jobs"]
    assert job == listed | {"spec": job["spec"], "warnings": job["warnings"], "webhook": None}
    assert len(answer.content) < 2_000
    (view,) = service.jobs.list().jobs
    assert view.record.spec == {}
    assert view.record.readable


@pytest.mark.parametrize("query", ["state=lost", "limit=0", "limit=201", "limit=x"])
def test_a_list_that_makes_no_sense_is_refused(service, query):
    assert_problem(service.http.get(f"/v1/jobs?{query}"), 422, "invalid-request")


@pytest.mark.parametrize(
    "cursor", ["", "x", "-1", "+inf", "1 2", "1.5", "٣", "9" * 17, "9" * 300, "(5", "0\n"]
)
def test_a_cursor_that_is_not_from_a_list_is_refused(service, cursor):
    assert_problem(service.http.get("/v1/jobs", params={"cursor": cursor}), 422, "invalid-request")


def fail(service, job_id, kind=ProblemKind.WORKER_TROUBLE):
    claim = service.jobs.claim(job_id, new_token("test"))
    assert service.jobs.fail(job_id, claim.fence, kind.problem(kind.text(**kind.examples)))


def test_a_failed_job_is_resumed_and_its_message_is_sent(redis_server, start):
    service = start(reaper_s=60)
    job_id = service.submit(service.stored(MODEL)).json()["id"]
    fail(service, job_id)
    redis_server.client().delete("eckart:broker:eckart")

    resumed = service.http.post(f"/v1/jobs/{job_id}/resume")

    assert resumed.status_code == 202
    assert "Retry-After" in resumed.headers
    assert (resumed.json()["state"], resumed.json()["error"]) == ("queued", None)
    assert redis_server.client().llen("eckart:broker:eckart") == 1
    service.finish(job_id, {"model.safetensors": MODEL})


def test_only_a_failed_job_is_resumed_and_only_with_its_checkpoint(service, stored):
    queued, failed = (service.submit(stored).json()["id"] for _ in range(2))
    refused = assert_problem(service.http.post(f"/v1/jobs/{queued}/resume"), 409, "job-not-failed")
    assert "queued" in refused["detail"]

    service.http.post(f"/v1/jobs/{queued}/cancel")
    fail(service, failed)
    assert service.http.delete(f"/v1/checkpoints/{stored}").status_code == 204
    assert_problem(service.http.post(f"/v1/jobs/{failed}/resume"), 409, "checkpoint-gone")


@pytest.mark.parametrize(
    "kind",
    [
        ProblemKind.INVALID_SPEC,
        ProblemKind.INVALID_CALIBRATION,
        ProblemKind.UNUSABLE_CHECKPOINT,
        ProblemKind.CHECKPOINT_CHANGED,
    ],
    ids=lambda kind: kind.value,
)
def test_a_job_that_would_fail_again_is_not_resumed(service, job, kind):
    fail(service, job["id"], kind)
    refused = assert_problem(service.http.post(f"/v1/jobs/{job['id']}/resume"), 409, "failure-stays")
    assert kind.text(**kind.examples) in refused["detail"]
    assert "start a new job" in refused["detail"]
