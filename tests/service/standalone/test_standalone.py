"""The whole set as `make serve` starts it: one line when it is ready, nothing left when it ends."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest

COMMAND = [sys.executable, "-m", "eckart", "serve"]


@pytest.fixture
def environment(short_dir):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return os.environ | {"ECKART_DATA_DIR": str(short_dir / "data"), "ECKART_PORT": str(port)}


@contextmanager
def standalone(environment, log):
    """Start it, give the process and its first line, and end it by SIGINT."""
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
    code = "import sys, service.standalone; print('torch' in sys.modules, 'celery' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout == "False False\n"


def test_with_a_server_given_by_url_it_starts_none_of_its_own(environment, short_dir, redis_server, tmp_path):
    environment |= {"ECKART_REDIS_URL": redis_server.url}
    with standalone(environment, tmp_path / "log"):
        pids = sorted(path.name for path in (short_dir / "data" / "run").glob("*.pid"))
        assert pids == ["api.pid", "worker.pid"]
        assert not (short_dir / "data" / "redis").exists()
