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
    UnreachableError,
    WaitTimeoutError,
)
from eckart.types import Job, PlanDocument, Report

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


def test_waiting_polls_until_the_job_has_succeeded(job, problem):
    running = job("running", progress={"layers_done": 3, "layers_total": 4, "layer": "a.b", "fraction": 0.5})
    done = job("succeeded", progress={"layers_done": 4, "layers_total": 4, "layer": None, "fraction": 1.0})
    answers = Answers(
        httpx.Response(404, json=problem(404, "Not found")),  # an older service has no events
        httpx.Response(200, json=job("queued", queue_position=2), headers=NOW),
        httpx.Response(200, json=running, headers=NOW),
        httpx.Response(200, json=done),
    )
    said = []
    with client(answers) as c:
        ended = c.wait("J1", progress=lambda *what: said.append(what))

    assert ended.state == "succeeded"
    assert said == [(0, 0, "queued, 2 before it"), (3, 4, "compress a.b"), (4, 4, "succeeded")]
    asked_for_events, *polls = answers.requests
    assert asked_for_events.url.path == "/v1/jobs/J1/events"
    assert all(request.url.path == "/v1/jobs/J1" for request in polls)
    assert all(int(request.url.params["wait"]) >= 1 for request in polls)


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
    with Client(url) as c, pytest.raises(InputError, match="is not the address of a service"):
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


def test_checkpoints_come_page_by_page():
    answers = Answers(
        httpx.Response(200, json={"checkpoints": [{"id": "b"}], "next_cursor": "7-a"}),
        httpx.Response(200, json={"checkpoints": [{"id": "a"}], "next_cursor": None}),
    )
    with client(answers) as c:
        assert [one.id for one in c.checkpoints()] == ["b", "a"]

    assert answers.requests[1].url.path == "/v1/checkpoints"
    assert answers.requests[1].url.params["cursor"] == "7-a"


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


def test_cancel_resume_delete_and_report_ask_as_the_contract_says(job, report):
    answers = Answers(
        httpx.Response(200, json=job("canceled")),
        httpx.Response(202, json=job("queued")),
        httpx.Response(204),
        httpx.Response(200, json=report()),
    )
    with client(answers) as c:
        assert c.cancel("J1").state == "canceled"
        assert c.resume("J1").state == "queued"
        assert c.delete("J1") is None
        assert isinstance(c.report("J1"), Report)

    assert [(request.method, request.url.path) for request in answers.requests] == [
        ("POST", "/v1/jobs/J1/cancel"),
        ("POST", "/v1/jobs/J1/resume"),
        ("DELETE", "/v1/jobs/J1"),
        ("GET", "/v1/jobs/J1/report"),
    ]


def test_a_plan_of_what_is_on_disk_sends_headers_alone(tmp_path, plan):
    path = tmp_path / "x.safetensors"
    save_file({"a.weight": torch.ones(8, 8)}, path)
    answers = Answers(httpx.ReadError("cut"), httpx.Response(200, json=plan))
    with client(answers) as c:
        document = c.plan(path, {"rank": 2})

    assert isinstance(document, PlanDocument)
    assert document.checkpoint == "x"
    first, second = answers.requests
    assert (first.method, first.url.path) == ("POST", "/v1/plans")
    assert first.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    header = path.read_bytes()[: -8 * 8 * 4]
    for request in (first, second):
        assert b'name="spec"\r\n\r\n{"rank": 2}\r\n' in request.content
        assert b'name="header"; filename="x.safetensors"' in request.content
        assert b"\r\n\r\n" + header + b"\r\n--" in request.content


def test_a_plan_of_what_is_stored_is_asked_for(plan):
    answers = Answers(httpx.Response(200, json=plan | {"checkpoint": "my-model"}))
    with client(answers) as c:
        assert c.plan("my-model", {"rank": 2}).checkpoint == "my-model"

    (request,) = answers.requests
    assert (request.method, request.url.path) == ("POST", "/v1/plans")
    assert json.loads(request.content) == {"checkpoint": "my-model", "spec": {"rank": 2}}


@pytest.fixture
def calibrated(tmp_path):
    """Save a model and the Gram matrix of its layer."""
    save_file({"a.weight": torch.ones(8, 8)}, tmp_path / "x.safetensors")
    save_file({"a.gram": torch.eye(8)}, tmp_path / "grams.safetensors")
    return tmp_path / "x.safetensors", tmp_path / "grams.safetensors"


@pytest.mark.parametrize(
    ("field", "spec"), [("calibration", SPEC), ("base", {"rank": 2, "layout": "adapter"})]
)
def test_another_checkpoint_on_disk_is_stored_and_named_in_the_spec(serve, service, calibrated, field, spec):
    model, other = calibrated
    respond, stored = service({"x.safetensors": b"smaller"})
    asked = []

    def listen(exchange):
        if exchange.path == "/v1/jobs":
            asked.append(json.loads(exchange.body))
        respond(exchange)

    with Client(serve(listen)) as c:
        c.compress(model, spec, **{field: other})

    assert stored.keys() == {"x.safetensors", "grams.safetensors"}
    assert asked[0]["spec"][field].startswith("grams-")
    assert asked[0]["checkpoint"].startswith("x-")


def test_a_calibration_that_is_stored_is_named_as_it_is(job):
    answers = Answers(httpx.Response(202, json=job()))
    with client(answers) as c:
        c.compress("my-model", SPEC, calibration="my-grams", wait=False)

    assert json.loads(answers.requests[0].content)["spec"]["calibration"] == "my-grams"


@pytest.mark.parametrize("given", ["file", "id", "in the spec"])
def test_a_plan_names_a_stored_calibration(serve, service, calibrated, given):
    """A file of Gram matrices is stored; of the model only the header is sent."""
    model, grams = calibrated
    respond, stored = service({})
    asked = []

    def listen(exchange):
        if exchange.method == "POST":
            asked.append(exchange.body)
        respond(exchange)

    spec = {"rank": 2, "calibration": "my-grams"} if given == "in the spec" else {"rank": 2}
    with Client(serve(listen)) as c:
        c.plan(model, spec, calibration={"file": grams, "id": "my-grams", "in the spec": None}[given])

    assert stored.keys() == ({"grams.safetensors"} if given == "file" else set())
    name = b"grams-" if given == "file" else b"my-grams"
    assert b'{"rank": 2, "calibration": "' + name in asked[0]


def test_two_bases_are_refused_before_anything_is_sent():
    answers = Answers(httpx.Response(500))
    with client(answers) as c, pytest.raises(InputError, match="the spec has a base, other"):
        c.plan("my-model", {"rank": 2, "base": "other"}, base="my-base")

    assert answers.requests == []


def test_two_calibrations_are_refused_before_anything_is_sent(calibrated):
    model, grams = calibrated
    answers = Answers(httpx.Response(500))
    with (
        client(answers) as c,
        pytest.raises(InputError, match="the spec has a calibration, other"),
    ):
        c.compress(model, {"rank": 2, "calibration": "other"}, calibration=grams)

    assert answers.requests == []


def test_what_the_service_refuses_to_plan_is_not_uploaded(tmp_path, problem):
    save_file({"a.weight": torch.ones(8, 8)}, tmp_path / "x.safetensors")
    answers = Answers(httpx.Response(422, json=problem()))
    with client(answers) as c, pytest.raises(ProblemError, match="The spec is not valid"):
        c.compress(tmp_path / "x.safetensors", {"rank": 0})

    assert [request.url.path for request in answers.requests] == ["/v1/plans"]


def test_what_is_no_spec_is_refused_before_anything_is_sent(tmp_path):
    save_file({"a.weight": torch.ones(8, 8)}, tmp_path / "x.safetensors")
    answers = Answers(httpx.Response(500))
    with client(answers) as c, pytest.raises(InputError, match="the spec is not valid"):
        c.compress(tmp_path / "x.safetensors", "{")

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
