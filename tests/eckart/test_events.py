"""`eckart.events`: a job's changes across connections that break, and waiting by them."""

from __future__ import annotations

import json

import pytest

from eckart import Client
from eckart.errors import AnswerError, JobFailed, ProblemError, TransferError

STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}
HALF = {"layers_done": 1, "layers_total": 2, "layer": "a\u2028b", "fraction": 0.5}


def event(kind, number, document, end="\n"):
    data = json.dumps(document, ensure_ascii=False)
    return end.join([f"event: {kind}", f"data: {data}", f"id: {number}", "", ""]).encode()


def streams(serve, *bodies, headers=STREAM, then=None):
    """Answer each request for events with the next body, and break the connection off; list the last ids."""
    left, seen = list(bodies), []

    def respond(exchange):
        if not exchange.path.endswith("/events"):
            exchange.answer(200, then)
            return
        seen.append(exchange.headers["Last-Event-ID"])
        body = left.pop(0)
        exchange.answer(200, body, {**headers, "Content-Length": str(len(body) + 1)}, cut=len(body))

    return serve(respond), seen


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_events_go_on_after_each_break(serve, job, end):
    url, seen = streams(
        serve,
        b": ping\n\n" + event("state", "1", job("running"), end),
        event("progress", "2", HALF, end) + b"event: sta",
        event("news", "3", {}, end) + event("end", "4", job("succeeded"), end),
    )
    with Client(url) as client:
        told = list(client.events("J1"))

    assert [(one.kind, one.id) for one in told] == [("state", "1"), ("progress", "2"), ("end", "4")]
    assert told[0].job.state == "running"
    assert told[1].job is None
    assert told[1].progress.layer == "a\u2028b"
    assert seen == [None, "1", "2"]


def test_events_that_do_not_come_back_raise(serve, job):
    url, _ = streams(serve, event("state", "1", job("running")))
    with Client(url, patience_s=0) as client, pytest.raises(TransferError):
        list(client.events("J1"))


def test_what_is_no_event_is_refused(serve, problem):
    page, _ = streams(serve, b"<h1>", headers={"Content-Type": "text/html"})
    odd, _ = streams(serve, event("end", "1", {"colour": "red"}))
    unknown = serve(lambda exchange: exchange.answer(404, problem(404, "Job not found")))
    for url, error in ((page, AnswerError), (odd, AnswerError), (unknown, ProblemError)):
        with Client(url) as client, pytest.raises(error):
            list(client.events("J1"))


def test_a_watched_wait_follows_events(serve, job):
    url, seen = streams(
        serve,
        event("state", "1", job("queued", queue_position=2))
        + event("state", "2", job("running"))
        + event("progress", "3", HALF)
        + event("end", "4", job("succeeded")),
    )
    said = []
    with Client(url) as client:
        ended = client.wait("J1", progress=lambda *what: said.append(what))

    assert ended.state == "succeeded"
    assert said[0] == (0, 0, "queued, 2 before it")
    assert said[2] == (1, 2, "compress a\u2028b")
    assert len(seen) == 1


def test_a_watched_wait_raises_where_the_job_fails(serve, job):
    url, _ = streams(serve, event("end", "1", job("failed")))
    with Client(url) as client, pytest.raises(JobFailed):
        client.wait("J1", progress=lambda *_: None)


def test_a_watched_wait_polls_once_events_break_off(serve, job):
    url, seen = streams(serve, event("state", "1", job("running")), then=job("succeeded"))
    with Client(url) as client:
        assert client.wait("J1", progress=lambda *_: None).state == "succeeded"
    assert len(seen) == 1
