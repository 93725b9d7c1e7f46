"""`service.jobs.status`: a job's document, its ETag, and waiting for a change."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import httpx
import pytest

from schemas.job import Progress
from schemas.problem import ProblemKind
from service.settings import Settings
from state.jobs.records import new_token
from state.redis import redis_client
from tests.service.files import FILES, MODEL
from tests.service.running import SPEC, TOTALS, assert_problem


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


def test_a_job_that_pauses_after_trouble_says_why_and_until_when(service, job):
    fence = service.jobs.claim(job["id"], new_token("worker")).fence
    why = ProblemKind.OUT_OF_SPACE.problem("The disk is full.")
    service.jobs.retry(job["id"], fence, why, pause_s=60, uncounted_for_s=600)

    body = service.http.get(f"/v1/jobs/{job['id']}").json()

    assert job["waiting"] is None
    assert (body["state"], body["queue_position"], body["error"]) == ("queued", None, None)
    assert (body["waiting"]["type"], body["waiting"]["title"]) == (why.type, why.title)
    assert body["waiting"]["next_attempt_at"] > body["started_at"]


def test_retry_after_is_given_until_the_job_has_ended(service, job):
    here = f"/v1/jobs/{job['id']}"

    assert int(service.http.get(here).headers["retry-after"]) > 0
    service.http.post(f"{here}/cancel")
    assert "retry-after" not in service.http.get(here).headers


def test_waiting_ends_when_the_state_changes(service, job):
    answers = []

    def ask():
        answers.append(service.http.get(f"/v1/jobs/{job['id']}", params={"wait": 30}))

    waiter = threading.Thread(target=ask)
    waiter.start()
    time.sleep(0.3)
    assert answers == []
    service.finish(job["id"], FILES)
    waiter.join(10)

    assert answers[0].json()["state"] in {"running", "succeeded"}


def test_any_number_of_answers_wait_by_one_poll(start, redis_server):
    service = start()
    job = service.submit(service.stored(MODEL)).json()["id"]
    waiters = 20
    with redis_client(redis_server.url) as redis, ThreadPoolExecutor(waiters) as threads:

        def scripts_run():
            return redis.info("commandstats")["cmdstat_evalsha"]["calls"]

        before = scripts_run()
        here = {"url": f"{service.url}/v1/jobs/{job}", "params": {"wait": 2}, "verify": False}
        answers = list(threads.map(lambda _: httpx.get(**here), range(waiters)))
        asked = scripts_run() - before

    assert {answer.json()["state"] for answer in answers} == {"queued"}
    # Each reads the job when it comes and when it answers; a poll of its own would read it six times more.
    assert asked < 4 * waiters


def test_waiting_ends_when_the_key_is_removed(start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("alice:of-alice\nbob:of-bob\n")
    service = start(api_keys=f"@{keys}")
    key = {"X-API-Key": "of-alice"}
    service.http.put("/v1/checkpoints/m/model.safetensors", content=MODEL, headers=key)
    job = service.http.post("/v1/jobs", json={"checkpoint": "m", "spec": SPEC}, headers=key).json()["id"]
    with ThreadPoolExecutor(2) as threads:
        waiting = [
            threads.submit(service.http.get, f"/v1/jobs/{job}{path}", params={"wait": 50}, headers=key)
            for path in ("", "/report")
        ]
        wait(waiting, timeout=0.3)
        keys.write_text("bob:of-bob\n")
        for answer in waiting:
            assert_problem(answer.result(20), 401, "unauthorized")


def test_waiting_ends_when_the_job_is_deleted(service, job):
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(service.http.get, f"/v1/jobs/{job['id']}/report", params={"wait": 50})
        wait([waiting], timeout=0.3)
        service.http.delete(f"/v1/jobs/{job['id']}")
        # It is canceled before it is gone.
        assert waiting.result(20).status_code in {404, 410}


def test_waiting_ends_when_the_time_is_up(service, job):
    answer = service.http.get(f"/v1/jobs/{job['id']}", params={"wait": 0.2})

    assert answer.json()["state"] == "queued"


def test_waiting_ends_when_the_service_stops(start):
    service = start()
    job = service.submit(service.stored(MODEL)).json()["id"]
    answers = []

    def ask():
        answers.append(httpx.get(f"{service.url}/v1/jobs/{job}", params={"wait": 60}, timeout=30))

    waiter = threading.Thread(target=ask)
    waiter.start()
    time.sleep(0.3)
    service.__exit__()
    waiter.join(10)

    assert answers[0].json()["state"] == "queued"


def test_waiting_for_a_job_that_has_ended_ends_at_once(service, job):
    service.finish(job["id"], FILES)

    answer = service.http.get(f"/v1/jobs/{job['id']}", params={"wait": 60}, timeout=5)

    assert answer.json()["state"] == "succeeded"


@pytest.mark.parametrize("wait", ["60", "300", "1e9"])
def test_a_wait_is_cut_short_before_a_proxy_gives_up(start, wait):
    service = start(max_wait_s=0.2)
    job = service.submit(service.stored(MODEL)).json()["id"]

    answer = service.http.get(f"/v1/jobs/{job}", params={"wait": wait})
    no_result = service.http.get(f"/v1/jobs/{job}/checkpoint", params={"wait": wait})

    assert answer.json()["state"] == "queued"
    assert_problem(no_result, 409, "no-result")


def test_the_usual_limit_of_a_wait_is_below_what_proxies_allow():
    assert Settings().max_wait_s == 50


@pytest.mark.parametrize("wait", ["-1", "x", "nan", "inf"])
def test_a_wait_that_makes_no_sense_is_refused(service, job, wait):
    refused = service.http.get(f"/v1/jobs/{job['id']}", params={"wait": wait})

    body = assert_problem(refused, 422, "invalid-request")
    assert body["errors"][0]["pointer"] == "/query/wait"


def test_a_running_job_shows_its_progress(service, job):
    claim = service.jobs.claim(job["id"], new_token("test"))
    progress = Progress(layers_done=1, layers_total=4, layer="layer.1", fraction=0.25)
    service.jobs.renew_lease(job["id"], claim.fence, progress)

    body = service.http.get(f"/v1/jobs/{job['id']}").json()

    assert body["state"] == "running"
    assert body["progress"] == progress.model_dump()
    assert body["attempt"] == 1
    assert body["queue_position"] is None
    assert body["started_at"] >= body["created_at"]


def test_a_failed_job_shows_its_problem(service, job):
    claim = service.jobs.claim(job["id"], new_token("test"))
    why = ProblemKind.WORKER_LOST.problem("Give the worker more memory.")
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


def test_warnings_of_the_work_follow_those_of_the_request(service, stored):
    asked = {"rank": 2, "include": ["layer.*", "nothing.*"]}
    job = service.submit(stored, asked).json()
    claim = service.jobs.claim(job["id"], new_token("test"))
    assert service.jobs.finish(job["id"], claim.fence, TOTALS, warnings=["odd", *["x" * 1000] * 9])
    shown = service.http.get(f"/v1/jobs/{job['id']}").json()["warnings"]
    assert shown[: len(job["warnings"]) + 1] == [*job["warnings"], "odd"]
    # Few and short, since Redis keeps them for each job.
    assert sum(map(len, shown[len(job["warnings"]) :])) < 2000
