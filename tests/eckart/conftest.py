"""Real HTTP servers with the behaviour that a test gives them, and the documents that they answer with."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eckart.http import repr_digest


@dataclass
class Exchange:
    """One request, and the way to answer it."""

    handler: BaseHTTPRequestHandler

    @cached_property
    def body(self):
        return self.handler.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def method(self):
        return self.handler.command

    @property
    def path(self):
        return self.handler.path.partition("?")[0]

    @property
    def headers(self):
        return self.handler.headers

    def answer(self, status, body=b"", headers=None, *, cut=None, early=False):
        """Answer; with `cut` only that many bytes of the body, and with `early` without reading what came.

        After either the line is dropped.
        """
        if not early:
            _ = self.body
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(content[:cut])
        if cut is not None or early:
            self.drop()

    def drop(self):
        self.handler.close_connection = True


@contextmanager
def running(respond):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_it(self):
            respond(Exchange(self))

        def log_message(self, *_):
            pass

    for method in ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.handle_it)

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):
            """Say nothing of a client that went away: some tests make it."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def serve():
    """Start a real HTTP server that answers with the given function; return its address."""
    with ExitStack() as stack:
        yield lambda respond: stack.enter_context(running(respond))


@pytest.fixture
def layer():
    """Make a layer of a report, factored unless a reason is given."""

    def make(
        name, *, shape=(384, 384), rank=96, reason=None, error=0.25, best=0.25, weighted=None, method="svd"
    ):
        kept = reason is not None
        before = shape[0] * shape[1]
        after = before if kept else rank * sum(shape)
        return {
            "name": name,
            "tensor": f"{name}.weight",
            "shape": shape,
            "transposed": False,
            "calibrated": weighted is not None,
            "dtype": "F32",
            "outcome": "kept" if kept else "factored",
            "reason": reason,
            "method": method,
            "selector": None,
            "rank": None if kept else rank,
            "break_even_rank": 191,
            "parameters_before": before,
            "parameters_after": after,
            "bytes_before": 4 * before,
            "bytes_after": 4 * after,
            "relative_error": None if kept else error,
            "optimal_error": None if kept or weighted is not None else best,
            "weighted_error": None if kept else weighted,
            "optimal_weighted_error": None if kept else weighted,
            "singular_values": None,
            "singular_value_indices": None,
            "decomposition": "computed",
            "columns": None,
            "rows": None,
            "seconds": 0.5,
        }

    return make


@pytest.fixture
def report():
    """Make a report of the given layers and output files."""

    def make(layers=(), files=(), **fields):
        listed = [
            {"name": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in dict(files).items()
        ]
        before = 1000 + sum(x["parameters_before"] for x in layers)
        after = 1000 + sum(x["parameters_after"] for x in layers)
        document = {
            "version": 1,
            "job_id": "J1",
            "created_at": "2026-01-02T03:04:05Z",
            "spec": {"method": "svd", "rank": {"ratio": 0.5}},
            "environment": {"device": "cpu"},
            "warnings": [],
            "input": {"files": [], "parameters": before, "bytes": 4 * before},
            "calibration": None,
            "base": None,
            "how_to_load": None,
            "output": {
                "files": listed,
                "parameters": after,
                "bytes": sum(file["size_bytes"] for file in listed),
            },
            "totals": {
                "parameters_before": before,
                "parameters_after": after,
                "parameter_savings": 1 - after / before,
                "compression_factor": before / after,
                "bytes_before": 4 * before,
                "bytes_after": 4 * after,
                "relative_error": 0.25,
                "weighted_error": None,
                "error_over_optimal": None,
                "layers_factored": sum(x["outcome"] == "factored" for x in layers),
                "layers_kept": sum(x["outcome"] == "kept" for x in layers),
                "seconds": 4.25,
            },
            "layers": list(layers),
        }
        return document | fields

    return make


@pytest.fixture
def job():
    """Make a job in a state."""

    def make(state="queued", **fields):
        document = {
            "id": "J1",
            "state": state,
            "checkpoint": "my-model",
            "spec": {"method": "svd", "rank": 4},
            "progress": {"layers_done": 0, "layers_total": 0, "layer": None, "fraction": 0.0},
            "attempt": 1,
            "queue_position": 0 if state == "queued" else None,
            "created_at": "2026-01-02T03:04:05Z",
            "started_at": None,
            "finished_at": None,
            "expires_at": None,
            "warnings": [],
            "error": None,
            "summary": None,
            "links": {
                "self": "/v1/jobs/J1",
                "report": "/v1/jobs/J1/report",
                "checkpoint": "/v1/jobs/J1/checkpoint",
                "files": "/v1/jobs/J1/files/{filename}",
                "cancel": "/v1/jobs/J1/cancel",
            },
        }
        return document | fields

    return make


@pytest.fixture
def problem():
    """Make a problem document."""

    def make(status=422, title="The spec is not valid", detail="fix it", errors=()):
        return {
            "type": "urn:eckart:problem:some-kind",
            "title": title,
            "status": status,
            "detail": detail,
            "errors": list(errors),
        }

    return make


@pytest.fixture
def plan():
    """Make a plan of nothing."""
    return {
        "checkpoint": None,
        "warnings": [],
        "layers": [],
        "totals": {
            "parameters_before": 0,
            "parameters_after": 0,
            "parameter_savings": 0.0,
            "compression_factor": 1.0,
            "bytes_before": 0,
            "bytes_after": 0,
            "layers_factored": 0,
            "layers_kept": 0,
            "exact": True,
        },
    }


@pytest.fixture
def service(job, report, problem, plan):
    """Make the answers of a small service that holds one result, and where it keeps what it is sent."""

    def make(result, *, layers=(), fail=None):
        stored = {}
        document = json.dumps(report(layers, result)).encode()

        def put(exchange):
            name = exchange.path.rsplit("/", 1)[1]
            digest = repr_digest(hashlib.sha256(exchange.body).hexdigest())
            assert exchange.headers["Repr-Digest"] == digest
            stored[name] = exchange.body
            exchange.answer(201, {}, {"Repr-Digest": digest})

        def get(exchange):
            if exchange.path.startswith("/v1/checkpoints/"):
                exchange.answer(404, problem(404, "There is no such checkpoint", "look"))
            elif exchange.path.endswith("/report"):
                exchange.answer(200, document)
            elif "/files/" in exchange.path:
                exchange.answer(200, result[exchange.path.rsplit("/", 1)[1]])
            else:
                exchange.answer(200, job("failed", error=fail) if fail else job("succeeded"))

        def respond(exchange):
            if exchange.path == "/v1/plans":
                exchange.answer(200, plan)
            elif exchange.method == "POST":
                exchange.answer(202, job("queued"), {"Retry-After": "0"})
            else:
                (put if exchange.method == "PUT" else get)(exchange)

        return respond, stored

    return make
