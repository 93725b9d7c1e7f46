"""`service.errors`, `service.problems`: every error is answered with a problem, whatever a client sends."""

import contextlib
import re
import socket

import pytest
from starlette.exceptions import HTTPException

from schemas.digest import DigestError
from schemas.format.errors import CheckpointError
from schemas.problem import Problem
from service.errors import KIND_BY_SLUG, Kind, ProblemError
from service.problems import HANDLERS, to_problem
from state import errors as state_errors
from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem, until

MODEL = checkpoint_bytes()
UPLOAD = b"PUT /v1/checkpoints/a/m.safetensors HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_makes_a_whole_problem(kind):
    problem = ProblemError(kind).problem()

    assert isinstance(problem, Problem)
    assert 400 <= problem.status < 600
    assert problem.title
    assert problem.detail.endswith((".", "}"))


@pytest.mark.parametrize("kind", Kind)
def test_a_default_detail_holds_no_number_of_a_particular_case(kind):
    general = re.sub(r"HTTP/1.1|SHA-256|/v1/", "", kind.detail)

    assert not any(character.isdigit() for character in general)


def test_no_two_kinds_share_a_slug():
    assert set(KIND_BY_SLUG.values()) == set(Kind)


def leaves(base):
    return [leaf for kind in base.__subclasses__() for leaf in leaves(kind)] or [base]


@pytest.mark.parametrize("error", leaves(state_errors.StateError))
def test_every_error_of_state_has_a_row_in_the_table(error):
    made = {
        state_errors.ContentConflict: lambda: error("model.safetensors"),
        state_errors.DigestMismatch: lambda: error(expected="aa", actual="bb"),
        state_errors.TooLarge: lambda: error(7),
    }.get(error, error)()

    problem = to_problem(made)

    assert problem.kind.slug == error.slug
    assert problem.kind is not Kind.INTERNAL_ERROR
    assert problem.detail == str(made)
    assert any(base in HANDLERS for base in error.__mro__)


@pytest.mark.parametrize(
    ("foreign", "kind"),
    [
        (CheckpointError("not-json", "Not JSON.", "/a"), Kind.INVALID_CHECKPOINT),
        (DigestError("No base64."), Kind.INVALID_REQUEST),
        (HTTPException(404), Kind.NOT_FOUND),
        (HTTPException(405), Kind.METHOD_NOT_ALLOWED),
        (HTTPException(400), Kind.INVALID_REQUEST),
        (OSError(28, "No space left on device"), Kind.OUT_OF_SPACE),
        (OSError(122, "Disk quota exceeded"), Kind.OUT_OF_SPACE),
        (OSError(5, "Input/output error"), Kind.INTERNAL_ERROR),
        (RuntimeError("a fault"), Kind.INTERNAL_ERROR),
    ],
)
def test_every_foreign_error_becomes_a_problem(foreign, kind):
    assert to_problem(foreign).kind is kind


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/jobs/", "/v1/checkpoints", "/v1/jobs/a/b/c", "//", "/..", "/%00"]
)
def test_an_unknown_address_is_not_found(service, path):
    answer = service.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"urn:eckart:problem:not-found" in answer


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/jobs", "GET, POST"),
        ("PUT", "/v1/jobs/a", "GET, HEAD, DELETE"),
        ("PUT", "/v1/checkpoints/a", "GET, HEAD, POST, DELETE"),
        ("GET", "/v1/checkpoints/a/b.safetensors", "PUT"),
        ("GET", "/v1/jobs/a/cancel", "POST"),
        ("POST", "/livez", "GET, HEAD"),
        ("POST", "/v1/jobs/a/report", "GET, HEAD"),
        ("OPTIONS", "/v1/plans", "POST"),
    ],
)
def test_a_method_that_an_address_does_not_take_is_refused_with_those_it_takes(
    service, method, path, allowed
):
    refused = service.http.request(method, path)

    assert_problem(refused, 405, "method-not-allowed")
    assert refused.headers["allow"] == allowed


def test_every_answer_carries_a_request_id_the_clients_own_if_it_is_harmless(service):
    given = service.http.get("/nothing", headers={"X-Request-ID": "abc-123"})
    odd = service.http.get("/livez", headers={"X-Request-ID": "a b\tc" * 50})

    assert given.headers["x-request-id"] == "abc-123"
    assert len(odd.headers["x-request-id"]) == 16


def test_no_answer_names_the_server_software(service):
    assert "server" not in service.http.get("/livez").headers


def test_with_redis_away_jobs_are_refused_and_come_back_with_it(redis_server, start):
    service = start(reaper_s=0.2)
    stored = service.stored(MODEL)
    job = service.submit(stored).json()["id"]
    redis_server.kill()
    try:
        for refused in (
            service.submit(stored),
            service.one_shot({"model.safetensors": MODEL}),
            service.http.get(f"/v1/jobs/{job}"),
            service.http.get("/v1/jobs"),
            service.http.post(f"/v1/jobs/{job}/cancel"),
            service.http.delete(f"/v1/jobs/{job}"),
            service.http.get(f"/v1/jobs/{job}/report"),
            service.http.delete(f"/v1/checkpoints/{stored}"),
        ):
            assert_problem(refused, 503, "store-unavailable")
            assert int(refused.headers["retry-after"]) > 0
        assert service.put("away", "model.safetensors", MODEL).status_code == 201
        assert service.http.get("/livez").status_code == 200
        assert service.http.get("/metrics").status_code == 200
        missing = assert_problem(service.http.get("/readyz"), 503, "not-ready")["errors"]
        assert [part["pointer"] for part in missing] == ["/redis"]
        until(lambda: service.leftovers() == [])
        assert {path.name for path in (service.data_dir / "checkpoints").iterdir()} == {stored, "away"}
    finally:
        redis_server.start()

    assert service.http.get(f"/v1/jobs/{job}").json()["state"] == "queued"
    assert service.submit(stored).status_code == 202


def test_a_refused_client_that_goes_on_sending_is_cut_off(service):
    """What it sends must not be read for ever, and what it is told must arrive."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(b"PUT /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n")
        sent = 0
        try:
            while sent < 900_000_000:
                sent += connection.send(bytes(65536))
        except OSError:
            pass
        answer = connection.recv(65536)

    assert sent < 100_000_000
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"connection: close" in answer


def test_a_refused_client_with_little_left_to_send_keeps_its_connection(service):
    request = b"PUT /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
    last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    answer = service.raw(request + last)

    assert answer.count(b"HTTP/1.1 404 ") == 1
    assert answer.count(b"HTTP/1.1 200 ") == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"FETCH / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nNo colon\r\n\r\n",
        UPLOAD + b"Content-Length: -1\r\n\r\n",
        UPLOAD + b"Content-Length: 1e3\r\n\r\n",
        UPLOAD + b"Content-Length: 99999999999999999999\r\n\r\n",
        UPLOAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        UPLOAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        UPLOAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabcde\r\n",
    ],
)
def test_what_is_no_http_is_refused_as_a_problem(service, request_bytes):
    answer = service.raw(request_bytes)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in answer
    assert b"urn:eckart:problem:invalid-http" in answer
    assert service.http.get("/livez").status_code == 200
    until(lambda: service.leftovers() == [])


def test_a_transfer_that_is_compressed_is_refused(service):
    answer = service.raw(UPLOAD + b"Connection: close\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")

    assert answer.startswith((b"HTTP/1.1 415 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize("head", [b"GET /" + b"a" * 2_000_000, b"GET / HTTP/1.1\r\nX: " + b"a" * 2_000_000])
def test_an_endless_head_is_refused(service, head):
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(head)
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"urn:eckart:problem:headers-too-large" in answer


def test_an_upgrade_to_something_else_is_ignored(service):
    answer = service.raw(
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )

    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_missing_body_is_a_refusal_and_no_fault(service):
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n"

    answer = service.raw(head)

    assert answer.startswith(b"HTTP/1.1 422 ")


def test_with_redis_away_a_refused_form_leaves_nothing_either(redis_server, start):
    service = start(reaper_s=60)
    files = [("checkpoint", ("a.safetensors", MODEL)), ("checkpoint", ("b.safetensors", MODEL[:-1]))]
    redis_server.kill()
    try:
        refused = service.http.post("/v1/checkpoints/away", files=files)
    finally:
        redis_server.start()

    assert_problem(refused, 422, "invalid-checkpoint:truncated")
    assert service.http.get("/v1/checkpoints/away").status_code == 404
