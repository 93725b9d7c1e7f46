"""The lines for nginx in docs/5-operations.md, run by a real nginx where there is one."""

import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from eckart import Client
from tests.service.files import FILES, big_checkpoint, checkpoint_bytes
from tests.service.running import SPEC, assert_problem, until

NGINX = shutil.which("nginx")
PAGE = Path(__file__).parents[2] / "docs" / "5-operations.md"
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

# Larger than the 1 MiB that nginx takes by itself.
LARGE = checkpoint_bytes({"a.weight": (1024, 1024)})


@pytest.fixture
def url(service, tmp_path):
    """Serve the API by nginx, with the lines of the page."""
    found = re.search(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    location = found[1].replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folders = "".join(
        f"{kind}_temp_path {tmp_path};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; {folders} server {{ listen 127.0.0.1:{port};\n{location} }} }}\n"
    )
    server = subprocess.Popen([str(NGINX), "-p", str(tmp_path), "-e", "error.log", "-c", "nginx.conf"])
    try:
        address = f"http://127.0.0.1:{port}/eckart"
        until(lambda: server.poll() is not None or answers(f"{address}/livez"))
        yield address
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait()


def answers(address):
    try:
        return httpx.get(address, verify=False).status_code == 200
    except httpx.TransportError:
        return False


def test_a_job_from_the_upload_to_the_download(service, url, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(LARGE)

    with Client(url) as client:
        job = client.compress(tmp_path / "model.safetensors", SPEC, wait=False)
        service.finish(job.id, {"model.safetensors": LARGE})
        client.wait(job.id)
        client.download(job.id, tmp_path / "result")

    assert (tmp_path / "result" / "model.safetensors").read_bytes() == LARGE


def test_an_upload_of_unknown_length_and_a_form(url):
    pieces = (LARGE[i : i + 65_536] for i in range(0, len(LARGE), 65_536))

    stored = httpx.put(f"{url}/v1/checkpoints/chunked/model.safetensors", content=pieces)
    made = httpx.post(
        f"{url}/v1/jobs", files={"checkpoint": ("m.safetensors", LARGE)}, data={"spec": '{"rank": 1}'}
    )

    assert stored.status_code == 201
    assert made.headers["location"] == f"/eckart/v1/jobs/{made.json()['id']}"


def test_curl_hears_of_a_bad_header_long_before_the_end_of_the_file(service, url, tmp_path):
    """Nginx passes the early refusal on; curl then stops sending."""
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(b"GGUF")
        stream.truncate(10**9)
    form = ["-w", "\\n%{http_code} %{size_upload}", "-T", file, f"{url}/v1/checkpoints/bad/"]

    done = subprocess.run(["curl", "-sS", *form], capture_output=True, text=True, check=False)

    said, _, numbers = done.stdout.partition("\n")
    assert len(numbers.split()) == 2, done.stdout
    status, sent = numbers.split()
    assert "other-format" in said
    assert status == "422"
    assert int(sent) < 10**8
    assert service.leftovers() == []


def test_a_client_that_leaves_leaves_nothing(service, url):
    host, port = url.removeprefix("http://").removesuffix("/eckart").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"PUT /eckart/v1/checkpoints/gone/model.safetensors HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 50000000\r\n\r\n" + big_checkpoint(49_990_000) + bytes(100_000)
        )
        until(lambda: service.leftovers() != [])
    until(lambda: service.leftovers() == [])


def test_waiting_and_ranges(service, url):
    job = service.submit(service.stored(FILES["model.safetensors"])).json()["id"]

    assert_problem(httpx.get(f"{url}/v1/jobs/{job}/checkpoint?wait=0.2"), 409, "no-result")
    service.finish(job, FILES)
    several = httpx.get(f"{url}/v1/jobs/{job}/checkpoint", headers={"Range": "bytes=0-1,4-5"})

    assert several.status_code == 206
    assert several.headers["content-type"].startswith("multipart/byteranges")


def test_events_are_not_held_back(service, url):
    job = service.submit(service.stored(FILES["model.safetensors"])).json()["id"]

    with httpx.stream("GET", f"{url}/v1/jobs/{job}/events", timeout=20) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: state"  # while the job waits and nothing else is sent
        service.jobs.cancel(job)
        assert "event: end" in list(lines)
