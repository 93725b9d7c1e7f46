"""`service.standalone.__main__`: starting as `make serve` does, refusing to start, the readiness probe."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest

from schemas.problem import FieldProblem, ProblemKind
from service.standalone.__main__ import ReadinessProbe
from service.standalone.address import Address
from service.standalone.run_dir import locked_run_dir

COMMAND = [sys.executable, "-m", "service.standalone"]


@pytest.fixture
def environment(short_dir):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return os.environ | {"ECKART_DATA_DIR": str(short_dir / "data"), "ECKART_PORT": str(port)}


@contextmanager
def standalone(environment, log):
    """Start it, yield the process and its first line, and end it with SIGINT."""
    with log.open("a") as stderr:
        process = subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        yield process, process.stdout.readline()
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
        assert (process.returncode, rest) == (0, ""), log.read_text()


def test_it_says_when_it_is_ready_and_leaves_nothing_but_data(environment, short_dir, tmp_path, is_running):
    url = f"http://127.0.0.1:{environment['ECKART_PORT']}"
    data_dir = short_dir / "data"
    with standalone(environment, tmp_path / "log") as (_, line):
        assert line.startswith(f"Eckart listens on {url}, its data is in {data_dir}. Try: curl ")
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert (data_dir / "run" / "redis.sock").is_socket()
        pids = [int((data_dir / "run" / f"{name}.pid").read_text()) for name in ("redis", "worker", "api")]
        again = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)
        assert (again.returncode, again.stdout) == (1, "")
        assert "is in use by process" in again.stderr
    assert not any(is_running(pid) for pid in pids)
    assert [path.name for path in (data_dir / "run").iterdir()] == ["lock"]


def test_it_imports_no_torch():
    code = "import sys, service.standalone.__main__; print('torch' in sys.modules, 'celery' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout == "False False\n"


def test_with_a_server_given_by_url_it_starts_none_of_its_own(environment, short_dir, redis_server, tmp_path):
    environment |= {"ECKART_REDIS_URL": redis_server.url}
    with standalone(environment, tmp_path / "log"):
        pids = sorted(path.name for path in (short_dir / "data" / "run").glob("*.pid"))
        assert pids == ["api.pid", "worker.pid"]
        assert not (short_dir / "data" / "redis").exists()


@pytest.fixture
def refused(tmp_path):
    """Run the standalone service where it must not start, and return its one line of output."""

    def refused(**environment):
        settings = {"ECKART_DATA_DIR": str(tmp_path / "data"), "ECKART_PORT": "0", **environment}
        run = subprocess.run(
            [sys.executable, "-m", "service.standalone"],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (run.returncode, run.stdout) == (1, "")
        assert not (tmp_path / "data" / "redis").exists()
        lines = run.stderr.splitlines()
        assert len(lines) == 1, run.stderr
        return lines[0]

    return refused


def test_a_second_start_on_the_same_data_is_refused(refused, tmp_path):
    with locked_run_dir(tmp_path / "data" / "run"):
        assert f"{tmp_path / 'data'} is in use by process {os.getpid()}" in refused()


def test_a_port_in_use_is_refused(refused):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in refused(ECKART_PORT=str(port))


def test_a_data_directory_that_is_a_file_is_refused(refused, tmp_path):
    (tmp_path / "file").touch()
    assert "ECKART_DATA_DIR" in refused(ECKART_DATA_DIR=str(tmp_path / "file"))


def test_a_redis_that_cannot_be_one_is_refused(refused):
    assert "ECKART_REDIS_URL: " in refused(ECKART_REDIS_URL="http://x")


def test_a_setting_of_the_worker_that_makes_no_sense_ends_the_start_too(environment, short_dir):
    run = subprocess.run(
        COMMAND,
        env=environment | {"ECKART_WORKERS": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.count("ECKART_WORKERS: ") == 1
    assert "eckart: worker cannot run with these settings" in run.stderr
    assert [path.name for path in (short_dir / "data" / "run").iterdir()] == ["lock"]


def test_a_setting_that_makes_no_sense_is_named(refused):
    assert refused(ECKART_PORT="high").startswith("eckart: ECKART_PORT: ")


MISSING = ProblemKind.NOT_READY.problem(
    "Missing: workers, disk. See errors for each.",
    errors=(
        FieldProblem(pointer="/workers", detail="No worker is alive; start one."),
        FieldProblem(pointer="/disk", detail="The disk has no room; delete jobs."),
    ),
)


@pytest.fixture
def readyz():
    """Serve an answer of the test's choice on a real port."""

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


def test_what_is_missing_is_said_after_a_while(readyz, capsys):
    address, _ = readyz
    probe = ReadinessProbe(address, first_message_s=0)

    assert not probe()

    said = capsys.readouterr().err
    assert said.startswith("eckart: not ready yet: workers: No worker is alive; start one. disk: The disk ")
    assert said.count("\n") == 1


def test_nothing_is_said_at_first(readyz, capsys):
    address, _ = readyz
    probe = ReadinessProbe(address, first_message_s=3600)

    assert not any(probe() for _ in range(3))
    assert capsys.readouterr().err == ""


def test_the_intervals_between_messages_double(readyz, capsys):
    address, _ = readyz
    probe = ReadinessProbe(address, first_message_s=0.05)

    times = []
    while len(times) < 3:
        assert not probe()
        if capsys.readouterr().err:
            times.append(time.monotonic())

    assert times[1] - times[0] > 0.09
    assert times[2] - times[1] > 0.19


def test_a_ready_service_is_ready_without_a_word(readyz, capsys):
    address, handler = readyz
    handler.status = 200

    assert ReadinessProbe(address, first_message_s=0)()
    assert capsys.readouterr().err == ""


def test_a_silent_port_and_another_program_on_it_are_distinguished(readyz, capsys):
    address, handler = readyz
    handler.body = b"<html>"
    assert not ReadinessProbe(address, first_message_s=0)()
    assert "another program" in capsys.readouterr().err

    free = Address("127.0.0.1", 0).resolve()
    assert not ReadinessProbe(free, first_message_s=0)()
    assert "does not answer" in capsys.readouterr().err
