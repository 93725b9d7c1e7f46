"""`service.errors`, `service.problems`: every error is answered with a problem, whatever a client sends."""

import re

import pytest
from starlette.exceptions import HTTPException

from schemas.digest import DigestHeaderError
from schemas.format.errors import CheckpointError
from schemas.problem import Problem, ProblemKind
from service.errors import HEADERS, ProblemError
from service.problems import HANDLERS, to_problem
from state import errors as state_errors
from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem, until

MODEL = checkpoint_bytes()


@pytest.mark.parametrize("kind", ProblemKind)
def test_every_kind_makes_a_whole_problem(kind):
    problem = kind.problem(kind.text(**kind.examples))

    assert isinstance(problem, Problem)
    assert 400 <= problem.status < 600
    assert problem.title
    assert problem.detail.endswith((".", "}"))


@pytest.mark.parametrize("kind", ProblemKind)
def test_a_default_detail_holds_no_number_of_a_particular_case(kind):
    general = re.sub(r"HTTP/1.1|SHA-256|/v1/", "", kind.detail)

    assert not any(character.isdigit() for character in general)


def test_no_two_kinds_share_a_name():
    assert len({kind.value for kind in ProblemKind}) == len(ProblemKind.__members__)


@pytest.mark.parametrize("kind", ProblemKind)
def test_a_detail_takes_exactly_the_values_that_it_names(kind):
    assert kind.examples.keys() == kind.placeholders
    with pytest.raises(AssertionError):
        kind.text(**kind.examples, other=1)
    if kind.placeholders:
        with pytest.raises(AssertionError):
            kind.text()


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_of_a_kind_are_sent_with_it(kind):
    assert ProblemError(kind, values=kind.examples).headers == HEADERS[kind]


def test_types_and_statuses_are_a_contract_with_clients():
    by_status = {}
    for kind in ProblemKind:
        by_status.setdefault(kind.status, set()).add(kind.value)

    assert by_status == {
        400: {"invalid-http", "unsupported-checksum"},
        401: {"unauthorized"},
        403: {"cross-site"},
        404: {
            "not-found",
            "checkpoint-not-found",
            "job-not-found",
            "file-not-found",
            "sharded-result",
            "upload-not-found",
        },
        405: {"method-not-allowed"},
        406: {"not-acceptable"},
        408: {"request-timeout"},
        409: {
            "failure-stays",
            "job-not-failed",
            "content-conflict",
            "checkpoint-incomplete",
            "checkpoint-in-use",
            "checkpoint-changed",
            "checkpoint-gone",
            "no-result",
            "offset-mismatch",
        },
        410: {"ended-without-result"},
        412: {"precondition-failed", "tus-version"},
        413: {"too-large"},
        415: {"unsupported-media-type", "encoded-body"},
        416: {"range-not-satisfiable"},
        421: {"foreign-host"},
        422: {
            "invalid-request",
            "invalid-json",
            "invalid-multipart",
            "invalid-spec",
            "invalid-checkpoint",
            "invalid-base",
            "invalid-calibration",
            "invalid-webhook",
            "partial-body",
            "digest-mismatch",
            "idempotency-mismatch",
            "unusable-checkpoint",
        },
        423: {"upload-locked"},
        429: {"busy", "over-quota"},
        431: {"headers-too-large"},
        460: {"checksum-mismatch"},
        500: {"layer-hung", "internal-error", "result-damaged", "worker-trouble", "worker-lost"},
        501: {"unreadable-record"},
        503: {"files-locked", "store-unavailable", "not-ready"},
        507: {"out-of-space", "out-of-memory"},
    }


def leaves(base):
    return [leaf for kind in base.__subclasses__() for leaf in leaves(kind)] or [base]


@pytest.mark.parametrize("error", leaves(state_errors.StateError))
def test_every_error_of_state_has_a_row_in_the_table(error):
    made = {
        state_errors.ContentConflict: lambda: error("model.safetensors"),
        state_errors.DigestMismatch: lambda: error(expected="aa", actual="bb"),
        state_errors.TooLarge: lambda: error(7),
        state_errors.TooManyJobs: lambda: error(7),
        state_errors.Busy: lambda: error("Much is under way."),
        state_errors.TooManyUploads: lambda: error(7),
        state_errors.OffsetMismatch: lambda: error(given=7, offset=9),
        state_errors.JobNotFailed: lambda: error("queued"),
        state_errors.FailureStays: lambda: error("The spec cannot be met."),
    }.get(error, error)()

    problem = to_problem(made)

    assert problem.kind is error.kind
    assert problem.kind is not ProblemKind.INTERNAL_ERROR
    assert problem.detail == str(made)
    assert any(base in HANDLERS for base in error.__mro__)


@pytest.mark.parametrize(
    ("foreign", "kind"),
    [
        (CheckpointError("not-json", "Not JSON.", "/a"), ProblemKind.INVALID_CHECKPOINT),
        (DigestHeaderError("No base64."), ProblemKind.INVALID_REQUEST),
        (HTTPException(404), ProblemKind.NOT_FOUND),
        (HTTPException(405), ProblemKind.METHOD_NOT_ALLOWED),
        (HTTPException(400), ProblemKind.INVALID_REQUEST),
        (OSError(28, "No space left on device"), ProblemKind.OUT_OF_SPACE),
        (OSError(122, "Disk quota exceeded"), ProblemKind.OUT_OF_SPACE),
        (OSError(5, "Input/output error"), ProblemKind.INTERNAL_ERROR),
        (RuntimeError("a fault"), ProblemKind.INTERNAL_ERROR),
    ],
)
def test_every_foreign_error_becomes_a_problem(foreign, kind):
    assert to_problem(foreign).kind is kind


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/jobs/", "/v1/checkpoints/", "/v1/jobs/a/b/c", "//", "/..", "/%00"]
)
def test_an_unknown_address_is_not_found(service, path):
    answer = service.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())

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


def test_with_redis_away_jobs_are_refused_and_come_back_with_it(redis_server, start):
    service = start(reaper_s=0.2)
    stored = service.stored(MODEL)
    job = service.submit(stored).json()["id"]
    redis_server.kill()
    try:
        for refused in (
            service.submit(stored),
            service.submit_files({"model.safetensors": MODEL}),
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


def test_a_missing_body_is_a_refusal_and_no_fault(service):
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: "
    head += b"application/json\r\n\r\n"

    answer = service.raw(head)

    assert answer.startswith(b"HTTP/1.1 422 ")


def test_with_redis_away_a_refused_multipart_body_leaves_nothing_either(redis_server, start):
    service = start(reaper_s=60)
    files = [("checkpoint", ("a.safetensors", MODEL)), ("checkpoint", ("b.safetensors", MODEL[:-1]))]
    redis_server.kill()
    try:
        refused = service.http.post("/v1/checkpoints/away", files=files)
    finally:
        redis_server.start()

    assert_problem(refused, 422, "invalid-checkpoint:truncated")
    assert service.http.get("/v1/checkpoints/away").status_code == 404
