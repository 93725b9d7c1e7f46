"""`service.server`, `service.__main__`: limits of HTTP, and the API as a process: small, quiet, no torch."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import httpx
import pytest

from service.server import WithoutProbes
from tests.service.files import big_checkpoint, checkpoint_bytes
from tests.service.running import assert_problem, until

UPLOAD = b"PUT /v1/checkpoints/a/m.safetensors HTTP/1.1\r\nHost: localhost\r\n"


def test_no_answer_names_the_server_software(service):
    assert "server" not in service.http.get("/livez").headers


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
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )

    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_stay_out_of_the_access_log(path):
    record = logging.LogRecord("uvicorn.access", 20, "", 0, "", ("a", "GET", f"{path}?x=1", "1.1", 200), None)
    other = logging.LogRecord("uvicorn.access", 20, "", 0, "", ("a", "GET", "/v1/jobs", "1.1", 200), None)

    assert WithoutProbes().filter(record) is False
    assert WithoutProbes().filter(other) is True


ROOT = Path(__file__).parents[2]


MIB = 2**20


@pytest.fixture
def process(redis_server, tmp_path):
    """Run `python -m service` on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "ECKART_PORT": str(port),
        "ECKART_DATA_DIR": str(tmp_path / "data"),
        "ECKART_REDIS_URL": redis_server.url,
        "ECKART_MIN_FREE_BYTES": "0",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "service"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        running.port = port
        wait_until_alive(running)
        yield running
        if running.poll() is None:
            running.kill()


def wait_until_alive(running):
    end = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/livez") as answer:
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < end
            assert running.poll() is None
            time.sleep(0.05)


def wait_until_received(running, nbytes):
    end = time.monotonic() + 30
    while (
        f"eckart_upload_bytes_total {float(nbytes)}\n"
        not in httpx.get(f"http://127.0.0.1:{running.port}/metrics").text
    ):
        assert time.monotonic() < end
        time.sleep(0.05)


def anonymous_bytes(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def send_file(port, pid, nbytes, *, multipart):
    """Upload a file of that size and return the largest anonymous memory of the API during the upload."""
    head, block = big_checkpoint(nbytes), bytes(MIB)
    before, after, kind, method, name = b"", b"", "", "PUT", "big/model.safetensors"
    if multipart:
        before = b'--x\r\nContent-Disposition: form-data; name="checkpoint"; filename="m.safetensors"\r\n\r\n'
        after, method, name = b"\r\n--x--\r\n", "POST", "multipart"
        kind = "Content-Type: multipart/form-data; boundary=x\r\n"
    length = len(before) + len(head) + nbytes + len(after)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            f"{method} /v1/checkpoints/{name} HTTP/1.1\r\nHost: localhost\r\n{kind}".encode()
            + f"Content-Length: {length}\r\n\r\n".encode()
        )
        connection.sendall(before + head)
        largest = 0
        for _ in range(nbytes // MIB):
            connection.sendall(block)
            largest = max(largest, anonymous_bytes(pid))
        connection.sendall(after)
        assert connection.recv(4096).startswith(b"HTTP/1.1 201 ")
    return max(largest, anonymous_bytes(pid))


@pytest.mark.parametrize("multipart", [False, True])
def test_an_upload_of_300_mb_takes_at_most_64_mib_of_memory(process, multipart):
    before = anonymous_bytes(process.pid)

    largest = send_file(process.port, process.pid, 300 * MIB, multipart=multipart)

    assert largest - before <= 64 * MIB


def test_it_stops_on_a_signal_and_its_log_has_no_probes_and_no_bodies(process):
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 12\r\n\r\nsecret-bytes"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 422 ")
    process.send_signal(signal.SIGTERM)

    assert process.wait(20) in {0, -signal.SIGTERM}
    log = process.stderr.read()
    assert '"POST /v1/jobs HTTP/1.1" 422' in log
    assert "livez" not in log
    assert "secret" not in log
    assert "Traceback" not in log


def spoil_manifest(manifest):
    manifest.write_text("not JSON")


def make_manifest_unreadable(manifest):
    manifest.unlink()
    manifest.mkdir()


@pytest.mark.parametrize("fault", [spoil_manifest, make_manifest_unreadable])
def test_the_log_has_the_cause_of_an_unexpected_error_under_the_requests_id(process, tmp_path, fault):
    url = f"http://127.0.0.1:{process.port}/v1/checkpoints/m"
    assert httpx.put(f"{url}/model.safetensors", content=checkpoint_bytes()).status_code == 201
    fault(tmp_path / "data" / "checkpoints" / "m" / ".manifest.json")

    assert_problem(httpx.get(url, headers={"X-Request-ID": "this-one"}), 500, "internal-error")
    httpx.get(f"http://127.0.0.1:{process.port}/nothing", headers={"X-Request-ID": "another"})
    process.terminate()
    process.wait(20)

    lines = process.stderr.read().splitlines()
    causes = [lines[i - 1] for i, line in enumerate(lines) if line.startswith("Traceback")]
    assert causes
    assert all(" ERROR [this-one] " in cause for cause in causes)
    assert any("[another]" in line and "GET /nothing" in line for line in lines)
    assert any("INFO [-] " in line for line in lines)


def test_without_redis_it_says_so_and_does_not_start(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "ECKART_REDIS_URL"}
    environment["ECKART_DATA_DIR"] = str(tmp_path / "data")

    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("ECKART_REDIS_URL is not set: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_bad_settings_are_named_one_a_line(tmp_path):
    wrong = {"ECKART_REDIS_URL": "http://x", "ECKART_PORT": "high", "ECKART_DATA_DIR": str(tmp_path / "data")}

    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=ROOT,
        env=os.environ | wrong,
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [
        "ECKART_REDIS_URL",
        "ECKART_PORT",
    ]
    assert not (tmp_path / "data").exists()


def test_an_upload_that_is_broken_off_is_logged_once_with_who_what_and_how_much(process):
    head = big_checkpoint(MIB)
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as connection:
        connection.sendall(
            b"PUT /v1/checkpoints/broken/model.safetensors HTTP/1.1\r\nHost: localhost\r\n"
            b"X-Request-ID: this-one\r\n" + f"Content-Length: {len(head) + MIB}\r\n\r\n".encode() + head
        )
        who = "{}:{}".format(*connection.getsockname())
        wait_until_received(process, len(head))
    said = next(line for line in process.stderr if "broken" in line)
    process.terminate()
    process.wait(20)

    assert " INFO [this-one] " in said
    path = "/v1/checkpoints/broken/model.safetensors"
    assert f"{who} broke off its upload to {path} after {len(head)} bytes" in said
    assert "broken" not in process.stderr.read()


def test_importing_the_service_imports_no_library_of_the_worker():
    script = (
        "import sys, service.app, service.server, service.settings\n"
        "heavy = {'torch', 'numpy', 'scipy', 'safetensors', 'worker'} & set(sys.modules)\n"
        "print(*sorted(heavy))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
