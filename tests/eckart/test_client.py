"""The client's verbs: what is asked, what comes back, and how long it goes on trying."""

from __future__ import annotations

import json

import httpx
import pytest
import torch
from safetensors.torch import save_file

from eckart import (
    AnswerError,
    Client,
    InputError,
    JobFailed,
    ProblemError,
    TransferError,
    UnreachableError,
    WaitTimeoutError,
)
from schemas.job import Job
from schemas.plan import PlanDocument
from schemas.report import Report

SPEC = {"method": "svd", "rank": 4}
NOW = {"Retry-After": "0"}


class Answers:
    """Answers given one after the other; the last one for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def client(answers, **options):
    return Client("http://here", transport=httpx.MockTransport(answers), **options)


def test_a_job_is_started_with_a_key_that_makes_a_retry_harmless(job):
    answers = Answers(httpx.ReadError("cut"), httpx.Response(202, json=job()))
    with client(answers) as c:
        started = c.submit("my-model", SPEC)

    first, second = answers.requests
    assert isinstance(started, Job)
    assert (first.method, first.url.path) == ("POST", "/v1/jobs")
    assert json.loads(first.content)["checkpoint"] == "my-model"
    assert json.loads(first.content)["spec"]["rank"] == 4
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]


def test_two_jobs_have_two_keys(job):
    answers = Answers(httpx.Response(202, json=job()))
    with client(answers) as c:
        c.submit("my-model", SPEC)
        c.submit("my-model", SPEC)

    first, second = answers.requests
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]


def test_waiting_polls_until_the_job_has_succeeded(job):
    running = job("running", progress={"layers_done": 3, "layers_total": 4, "layer": "a.b", "fraction": 0.5})
    done = job("succeeded", progress={"layers_done": 4, "layers_total": 4, "layer": None, "fraction": 1.0})
    answers = Answers(
        httpx.Response(200, json=job("queued", queue_position=2), headers=NOW),
        httpx.Response(200, json=running, headers=NOW),
        httpx.Response(200, json=done),
    )
    said = []
    with client(answers) as c:
        ended = c.wait("J1", progress=lambda *what: said.append(what))

    assert ended.state == "succeeded"
    assert said == [(0, 0, "queued, 2 before it"), (3, 4, "compress a.b"), (4, 4, "succeeded")]
    assert all(request.url.path == "/v1/jobs/J1" for request in answers.requests)
    assert all(int(request.url.params["wait"]) >= 1 for request in answers.requests)


def test_waiting_outlives_a_service_that_goes_and_comes_back(job, problem):
    answers = Answers(
        httpx.Response(200, json=job("queued"), headers=NOW),
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("cut"),
        httpx.Response(503, json=problem(503, "No Redis"), headers=NOW),
        httpx.Response(504, html="<h1>Gateway Timeout</h1>"),
        httpx.Response(200, json=job("succeeded")),
    )
    with client(answers) as c:
        assert c.wait("J1").state == "succeeded"


def test_a_service_that_asks_for_more_patience_than_there_is_ends_the_wait(problem):
    answers = Answers(httpx.Response(503, json=problem(503, "No Redis"), headers={"Retry-After": "3600"}))
    with client(answers, patience_s=1) as c, pytest.raises(ProblemError, match="No Redis") as caught:
        c.wait("J1")

    assert caught.value.retry_after_s == 3600
    assert len(answers.requests) == 1


@pytest.mark.parametrize("state", ["failed", "canceled"])
def test_a_job_without_a_result_raises(job, problem, state):
    error = problem(detail="The file is cut.") if state == "failed" else None
    answers = Answers(httpx.Response(200, json=job(state, error=error)))
    with client(answers) as c, pytest.raises(JobFailed) as caught:
        c.wait("J1")

    assert caught.value.job.state == state


@pytest.mark.parametrize("timeout_s", [0, 0.05])
def test_waiting_ends_when_its_time_is_up(job, timeout_s):
    answers = Answers(httpx.Response(200, json=job("running"), headers=NOW))
    with client(answers) as c, pytest.raises(WaitTimeoutError, match="it goes on") as caught:
        c.wait("J1", timeout_s=timeout_s)

    assert caught.value.job.state == "running"


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "3600"}])
def test_a_service_is_not_asked_more_often_than_it_says(job, headers):
    """Within its time the wait asks at the beginning and at the end, however quick the answers are."""
    answers = Answers(httpx.Response(200, json=job("running"), headers=headers))
    with client(answers) as c, pytest.raises(WaitTimeoutError):
        c.wait("J1", timeout_s=0.3)

    assert len(answers.requests) == 2


def test_a_service_that_was_never_there_is_not_waited_for():
    answers = Answers(httpx.ConnectError("refused"))
    with client(answers) as c, pytest.raises(UnreachableError, match="eckart serve"):
        c.job("J1")

    assert len(answers.requests) == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost:8000", "ftp://here", ""])
def test_an_address_that_is_none_is_refused(url):
    with Client(url) as c, pytest.raises(InputError, match="is not an address of a service"):
        c.job("J1")


def test_fields_that_a_newer_service_adds_are_let_by(job):
    newer = job("running", colour="blue")
    newer["links"]["events"] = "/v1/jobs/J1/events"
    newer["spec"]["budget_hint"] = 3
    with client(Answers(httpx.Response(200, json=newer))) as c:
        assert c.job("J1").state == "running"


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[1]", b"\xff"])
def test_an_answer_that_is_no_job_says_so(body):
    with client(Answers(httpx.Response(200, content=body))) as c, pytest.raises(AnswerError, match="no Job"):
        c.job("J1")


@pytest.mark.parametrize("status", [301, 400, 404, 500])
def test_a_refusal_in_other_words_is_quoted_without_control_characters(status):
    answers = Answers(httpx.Response(status, html="<h1>\x1b[31mNo\x1b[0m</h1>"))
    with client(answers) as c, pytest.raises(AnswerError, match="No") as caught:
        c.job("J1")

    assert str(caught.value).isprintable()
    assert caught.value.status == status


def test_an_id_cannot_lead_to_another_address(problem):
    answers = Answers(httpx.Response(404, json=problem(404, "There is no such job")))
    with client(answers) as c, pytest.raises(ProblemError):
        c.job("../checkpoints/x?y#z")

    assert answers.requests[0].url.raw_path == b"/v1/jobs/..%2Fcheckpoints%2Fx%3Fy%23z"


def test_jobs_come_page_by_page(job):
    answers = Answers(
        httpx.Response(200, json={"jobs": [job(id="J3"), job(id="J2")], "next_cursor": "J2"}),
        httpx.Response(200, json={"jobs": [job(id="J1")], "next_cursor": None}),
    )
    with client(answers) as c:
        assert [one.id for one in c.jobs(state="queued")] == ["J3", "J2", "J1"]

    first, second = answers.requests
    assert first.url.params["state"] == second.url.params["state"] == "queued"
    assert "cursor" not in first.url.params
    assert second.url.params["cursor"] == "J2"


def test_cancel_delete_and_report_ask_as_the_contract_says(job, report):
    answers = Answers(
        httpx.Response(200, json=job("canceled")), httpx.Response(204), httpx.Response(200, json=report())
    )
    with client(answers) as c:
        assert c.cancel("J1").state == "canceled"
        assert c.delete("J1") is None
        assert isinstance(c.report("J1"), Report)

    assert [(request.method, request.url.path) for request in answers.requests] == [
        ("POST", "/v1/jobs/J1/cancel"),
        ("DELETE", "/v1/jobs/J1"),
        ("GET", "/v1/jobs/J1/report"),
    ]


def test_a_plan_of_what_is_on_disk_needs_no_service(tmp_path):
    save_file({"a.weight": torch.ones(8, 8), "a.bias": torch.ones(8)}, tmp_path / "x.safetensors")
    answers = Answers(TransferError("not to be asked"))
    with client(answers) as c:
        plan = c.plan(tmp_path / "x.safetensors", {"rank": 2})

    assert [(layer.name, layer.rank) for layer in plan.layers] == [("a", 2)]
    assert (plan.totals.parameters_before, plan.totals.parameters_after) == (72, 40)
    assert answers.requests == []


def test_a_plan_of_what_is_stored_is_asked_for(tmp_path):
    save_file({"a.weight": torch.ones(8, 8)}, tmp_path / "x.safetensors")
    with client(Answers()) as c:
        document = c.plan(tmp_path / "x.safetensors", {"rank": 2})
    answers = Answers(httpx.Response(200, json=document.model_dump(mode="json")))
    with client(answers) as c:
        assert c.plan("my-model", {"rank": 2}) == document

    (request,) = answers.requests
    assert (request.method, request.url.path) == ("POST", "/v1/plans")
    assert json.loads(request.content)["checkpoint"] == "my-model"
    assert isinstance(document, PlanDocument)


@pytest.fixture
def calibrated(tmp_path):
    """Save a model and the Gram matrix of its layer."""
    save_file({"a.weight": torch.ones(8, 8)}, tmp_path / "x.safetensors")
    save_file({"a.gram": torch.eye(8)}, tmp_path / "grams.safetensors")
    return tmp_path / "x.safetensors", tmp_path / "grams.safetensors"


def test_a_calibration_on_disk_is_stored_and_named_in_the_spec(serve, service, calibrated):
    model, grams = calibrated
    respond, stored = service({"x.safetensors": b"smaller"})
    asked = []

    def listen(exchange):
        if exchange.method == "POST":
            asked.append(json.loads(exchange.body))
        respond(exchange)

    with Client(serve(listen)) as c:
        c.compress(model, SPEC, calibration=grams)

    assert stored.keys() == {"x.safetensors", "grams.safetensors"}
    assert asked[0]["spec"]["calibration"].startswith("grams-")
    assert asked[0]["checkpoint"].startswith("x-")


def test_a_calibration_that_is_stored_is_named_as_it_is(job):
    answers = Answers(httpx.Response(202, json=job()))
    with client(answers) as c:
        c.compress("my-model", SPEC, calibration="my-grams", wait=False)

    assert json.loads(answers.requests[0].content)["spec"]["calibration"] == "my-grams"


def test_a_plan_with_a_calibration_on_disk_needs_no_service(calibrated):
    model, grams = calibrated
    answers = Answers(TransferError("not to be asked"))
    with client(answers) as c:
        plan = c.plan(model, {"rank": 2}, calibration=grams)

    assert [layer.calibrated for layer in plan.layers] == [True]
    assert answers.requests == []


@pytest.mark.parametrize("where", ["argument", "spec"])
def test_a_plan_with_a_stored_calibration_asks_what_it_holds(calibrated, where):
    model, _ = calibrated
    tensors = [{"name": "a.gram", "dtype": "F32", "shape": [8, 8], "parameters": 64}]
    document = {
        "id": "my-grams",
        "files": [],
        "complete": True,
        "missing": [],
        "parameters": 64,
        "bytes": 256,
        "tensors": [tensor | {"selected": False, "break_even_rank": None} for tensor in tensors],
    }
    answers = Answers(httpx.Response(200, json=document))
    given = {"calibration": "my-grams"}
    with client(answers) as c:
        if where == "argument":
            plan = c.plan(model, {"rank": 2}, **given)
        else:
            plan = c.plan(model, {"rank": 2, **given})

    assert [layer.calibrated for layer in plan.layers] == [True]
    (request,) = answers.requests
    assert (request.method, request.url.path) == ("GET", "/v1/checkpoints/my-grams")


@pytest.mark.parametrize(
    ("gram", "spec", "words"),
    [
        (torch.eye(7), {"rank": 2}, r'Gram matrix of "a" is \[7, 7\]'),
        (torch.eye(8), {"rank": 2, "calibration": "other"}, "names the calibration other; leave one"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused_before_anything_is_sent(calibrated, gram, spec, words):
    model, grams = calibrated
    save_file({"a.gram": gram}, grams)
    answers = Answers(httpx.Response(500))
    with client(answers) as c, pytest.raises(InputError, match=words):
        c.compress(model, spec, calibration=grams)

    assert answers.requests == []


def test_a_bad_spec_is_refused_before_anything_is_sent(tmp_path):
    save_file({"a.weight": torch.ones(8, 8)}, tmp_path / "x.safetensors")
    answers = Answers(httpx.Response(500))
    with client(answers) as c, pytest.raises(InputError, match="the spec is not valid"):
        c.compress(tmp_path / "x.safetensors", {"rank": 0})

    assert answers.requests == []


def test_what_is_stored_is_compressed_without_an_upload(job):
    answers = Answers(httpx.Response(202, json=job()), httpx.Response(200, json=job("succeeded")))
    with client(answers) as c:
        assert c.compress("my-model", SPEC).state == "succeeded"

    assert [request.method for request in answers.requests] == ["POST", "GET"]


def test_compress_need_not_wait(job):
    with client(Answers(httpx.Response(202, json=job()))) as c:
        assert c.compress("my-model", SPEC, wait=False).state == "queued"


def test_upload_compress_wait_and_download_make_one_path(serve, service, tmp_path):
    save_file({"a.weight": torch.ones(8, 8)}, tmp_path / "x.safetensors")
    respond, stored = service({"x.safetensors": b"smaller"})
    with Client(serve(respond)) as c:
        job = c.compress(tmp_path / "x.safetensors", SPEC)
        files = c.download(job.id, tmp_path / "out")

    assert stored["x.safetensors"] == (tmp_path / "x.safetensors").read_bytes()
    assert [path.name for path in files] == ["x.safetensors", "report.json"]
    assert files[0].read_bytes() == b"smaller"


def test_a_proxy_for_the_world_is_not_asked_for_this_machine(serve, job, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(serve(lambda exchange: exchange.answer(200, job("running")))) as c:
        assert c.job("J1").state == "running"
