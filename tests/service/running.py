"""The API as the tests run it: uvicorn in a thread, a real Redis server, a data directory of its own."""

import hashlib
import json
import secrets
import socket
import threading
import time
from pathlib import Path

import httpx

from schemas.format.names import single_weight_file
from schemas.report import Totals
from service.server import Server
from service.settings import Settings
from state.checkpoints.store import CheckpointStore
from state.data_dir import DataDir
from state.jobs.records import new_token
from state.jobs.store import JobStore
from state.redis import redis_client
from state.workers import WorkerRegistry

SPEC = {"method": "svd", "rank": {"ratio": 0.5}}
PROBLEM = "application/problem+json"


class RunningService:
    """A service, and the stores that it uses, so that a test can inspect them or act as the worker."""

    def __init__(self, data_dir: Path, *, redis_url: str, **settings) -> None:
        self.settings = Settings(data_dir=data_dir, redis_url=redis_url, **settings)
        self.data_dir = data_dir
        self._redis = redis_client(redis_url)
        self.jobs = JobStore(self._redis, data_dir, lease_s=self.settings.lease_s)
        self.checkpoints = CheckpointStore(data_dir)
        self.workers = WorkerRegistry(self._redis)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # Plain HTTP, unverified: a context of TLS takes longer to make than an answer.
        self.http = httpx.Client(base_url=self.url, timeout=30, verify=False)
        self._server = Server(self.settings)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.http.close()
        self._server.should_exit = True
        self._thread.join()
        self._redis.close()

    def put(self, checkpoint_id, filename, content, **headers):
        return self.http.put(f"/v1/checkpoints/{checkpoint_id}/{filename}", content=content, headers=headers)

    def stored(self, content, filename="model.safetensors"):
        """Store a one-file checkpoint under a fresh id."""
        checkpoint_id = "t" + secrets.token_hex(8)
        assert self.put(checkpoint_id, filename, content).status_code == 201
        return checkpoint_id

    def submit(self, checkpoint_id, spec=None, **headers):
        return self.http.post(
            "/v1/jobs", json={"checkpoint": checkpoint_id, "spec": spec or SPEC}, headers=headers
        )

    def submit_files(self, files, spec=None, **headers):
        parts = [("checkpoint", (name, content)) for name, content in files.items()]
        return self.http.post(
            "/v1/jobs", files=parts, data={"spec": json.dumps(spec or SPEC)}, headers=headers
        )

    def finish(self, job_id, files):
        """Act as the worker: claim the job and publish these files with their report."""
        claim = self.jobs.claim(job_id, new_token("test"))
        assert claim is not None
        self.publish(job_id, claim, files)

    def publish(self, job_id, claim, files):
        """Publish these files as the result of a claimed job."""
        directory = DataDir(self.data_dir).result(job_id, claim.fence)
        directory.mkdir(parents=True)
        for name, content in files.items():
            (directory / name).write_bytes(content)
        (directory / "report.json").write_text(json.dumps(report_document(job_id, files)))
        assert self.jobs.finish(job_id, claim.fence, TOTALS, single_weight_file(files))

    def raw(self, request, *, timeout_s=10):
        """Send these bytes and return all that the service sends before it closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            connection.sendall(request)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        return answer

    def leftovers(self):
        """Return the temporary files of uploads; none may remain when an upload has ended."""
        parts = DataDir(self.data_dir).parts
        return sorted(parts.iterdir()) if parts.is_dir() else []


TOTALS = Totals(
    parameters_before=72,
    parameters_after=40,
    parameter_savings=0.4444,
    compression_factor=1.8,
    bytes_before=288,
    bytes_after=160,
    relative_error=0.1,
    layers_factored=1,
    layers_kept=0,
    seconds=0.1,
)


def report_document(job_id, files):
    listed = [
        {"name": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    ]
    return {
        "version": 1,
        "job_id": job_id,
        "created_at": "2026-01-02T03:04:05Z",
        "spec": SPEC,
        "environment": {"device": "cpu"},
        "warnings": [],
        "input": {"files": [], "parameters": 72, "bytes": 288},
        "calibration": None,
        "output": {"files": listed, "parameters": 40, "bytes": 160},
        "totals": TOTALS.model_dump(),
        "layers": [],
    }


def assert_problem(response, status, slug):
    """Check that an answer is a well-formed problem of this status and type; return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    body = response.json()
    assert body.keys() == {"type", "title", "status", "detail", "errors"}
    assert body["status"] == status
    assert body["type"] == f"urn:eckart:problem:{slug}"
    assert body["detail"]
    return body


def until(holds, limit_s=60):
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
