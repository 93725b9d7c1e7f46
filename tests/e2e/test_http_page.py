"""The lines for curl in docs/2-http.md: there is one for each operation, and they run."""

import re
import subprocess
from pathlib import Path

import httpx
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "2-http.md").read_text()
HOST = "http://127.0.0.1:8000"
BLOCKS = [block.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)]
(EACH,) = (block for block in BLOCKS if block.startswith(f"host={HOST}\n"))


def request_of(line):
    """Return method and path of a line for curl."""
    if given := re.search(r"-X (\w+)", line):
        method = given[1]
    elif " -I " in line:
        method = "HEAD"
    elif " -T " in line:
        method = "PUT"
    else:
        method = "POST" if re.search(r" -[dF] ", line) else "GET"
    line = line.replace("$job", f"{HOST}/v1/jobs/J0").replace("$upload", f"{HOST}/v1/uploads/U0")
    found = re.search(rf"(?:{re.escape(HOST)}|\$host)(/[^\s\"?)]*)", line)
    assert found, line
    return method, found[1]


@pytest.fixture(scope="module")
def operations(service):
    paths = httpx.get(f"{service.url}/openapi.json").json()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_each_operation_has_a_line(operations):
    lines = [line for block in BLOCKS for line in block.splitlines() if "curl " in line]
    requests = [request_of(line) for line in lines]

    def is_shown(method, path):
        # `curl -T file folder/` appends the file's name.
        pattern = re.sub(r"\{\w+\}", "[^/]+", path).replace("/[^/]+/[^/]+", "/[^/]+/[^/]*")
        return any(method == sent and re.fullmatch(pattern, to) for sent, to in requests)

    assert sorted(each for each in operations if not is_shown(*each)) == []


def test_the_lines_run_as_printed(service, minilm, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(minilm)
    stored = service.client.upload(minilm, id="page")
    job = service.client.compress(stored, {"rank": 4}).id
    lines = EACH.replace(HOST, service.url).replace("curl -sS", "curl -sS -w '\\n%{http_code}\\n'")
    settings = {"job": f"{service.url}/v1/jobs/{job}", "PATH": "/usr/bin:/bin"}

    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        cwd=tmp_path,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    statuses = [int(line) for line in done.stdout.splitlines() if re.fullmatch(r"\d{3}", line)]
    # An ended job stays as it is when it is canceled, and only a failed one is resumed. The line that
    # begins an upload prints nothing.
    refused = [status for status in statuses if status >= 400]
    assert (len(statuses), refused) == (18, [409]), done.stdout
    assert (tmp_path / "part.safetensors").stat().st_size > 0
