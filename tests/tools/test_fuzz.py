"""The run of schemathesis: tools/fuzz.py."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tools.fuzz import fuzz

JSON = {"content": {"application/json": {"schema": {"type": "object", "required": ["status"]}}}}
DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "t", "version": "1"},
    "paths": {"/livez": {"get": {"responses": {"200": {"description": "ok", **JSON}}}}},
}


@contextmanager
def answering(answer):
    """Serve the document, and this answer at the address in it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(DOCUMENT if self.path == "/openapi.json" else answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_answer_that_the_document_does_not_have_is_a_failure(capfd):
    # It takes seconds to start schemathesis.
    with answering({"state": "ok"}) as url:
        checks = ("--checks", "response_schema_conformance", "--phases", "coverage")
        assert fuzz(url, *checks) == 1
    assert "Response violates schema: 1" in capfd.readouterr().out
