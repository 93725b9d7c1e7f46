"""A start that is not ready says what it waits for, and does not repeat itself at every look."""

import http.server
import json
import threading

import pytest

from schemas.problem import FieldProblem, problem
from service.standalone.__main__ import Readiness
from service.standalone.address import Address

MISSING = problem(
    "not-ready",
    "Not ready for work",
    503,
    "Missing: workers, disk. See errors for each.",
    errors=(
        FieldProblem(pointer="/workers", detail="No worker is alive; start one."),
        FieldProblem(pointer="/disk", detail="The disk has no room; delete jobs."),
    ),
)


@pytest.fixture
def readyz():
    """Answer with what the test says, on a real port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        status, body = 503, json.dumps(MISSING.model_dump(mode="json")).encode()

        def do_GET(self):
            self.send_response(self.status if self.path == "/readyz" else 404)
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield Address("127.0.0.1", server.server_port), Handler
        server.shutdown()
        thread.join()


def test_what_is_missing_is_said_once_patience_is_over(readyz, capsys):
    address, _ = readyz
    ready = Readiness(address, patience_s=0)

    assert not ready()

    said = capsys.readouterr().err
    assert said.startswith("eckart: not ready yet: workers: No worker is alive; start one. disk: The disk ")
    assert said.count("\n") == 1


def test_nothing_is_said_before_patience_is_over(readyz, capsys):
    address, _ = readyz
    ready = Readiness(address, patience_s=3600)

    assert not any(ready() for _ in range(3))
    assert capsys.readouterr().err == ""


def test_it_is_said_ever_less_often(readyz, capsys):
    address, _ = readyz
    ready = Readiness(address, patience_s=0.05)

    told = 0
    for _ in range(10_000):
        assert not ready()
        told += capsys.readouterr().err.count("\n")
        if told == 2:
            break

    # Two pauses have doubled it twice.
    assert told == 2
    assert ready._pause_s == 0.2


def test_a_ready_service_is_ready_without_a_word(readyz, capsys):
    address, handler = readyz
    handler.status = 200

    assert Readiness(address, patience_s=0)()
    assert capsys.readouterr().err == ""


def test_a_silent_port_and_a_stranger_on_it_are_told_apart(readyz, capsys):
    address, handler = readyz
    handler.body = b"<html>"
    assert not Readiness(address, patience_s=0)()
    assert "another program" in capsys.readouterr().err

    free = Address("127.0.0.1", 0).checked()
    assert not Readiness(free, patience_s=0)()
    assert "does not answer" in capsys.readouterr().err
