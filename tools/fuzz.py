"""Requests made from the OpenAPI document, sent to a real service by schemathesis: `make fuzz`.

Once with keys and ids out of the document, and once without keys on a real job: every answer must be one
that the document has.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tools.pins import ROOT, tool

SCHEMATHESIS = "schemathesis==4.32.5"
SECRET = "of-fuzz"  # noqa: S105 - of a service that lives for minutes
EXAMPLES = 20
START_LIMIT_S = 60.0
CONFIG = f"""\
hooks = "tools.fuzz_hooks"
continue-on-failure = true
request-timeout = 60

[warnings]
enabled = false

[generation]
max-examples = {EXAMPLES}
no-shrink = true

# Beside the usual refusals: a precondition that does not hold, too large, a wrong checksum.
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 412, 413, 415, 422, 428, 429, 460, "5xx"]

# Beside the usual: a job that has no result, and a range behind the end of a file.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 410, 416, 429, "5xx"]

# Bytes of checkpoints, and specs, are refused for what no schema can say.
[[operations]]
include-method = ["POST", "PUT", "PATCH"]
checks.positive_data_acceptance.enabled = false

# A header that the document does not have is no fault: clients may send any.
[[operations]]
include-path = "/v1/uploads"
include-method = "POST"
checks.positive_data_acceptance.enabled = false
checks.negative_data_rejection.enabled = false
"""


@contextmanager
def running(data_dir: Path, **settings: str) -> Iterator[str]:
    """Start `eckart serve` on a free port, and give its address once it is ready."""
    environment = os.environ | {
        "ECKART_DATA_DIR": str(data_dir),
        "ECKART_PORT": "0",
        "ECKART_MIN_FREE_BYTES": "0",
        # No `wait` that is made up holds the run.
        "ECKART_MAX_WAIT_S": "0.1",
        **settings,
    }
    command = [sys.executable, "-P", "-m", "eckart", "serve"]
    with (data_dir / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            if len(words) < 4:
                raise SystemExit((data_dir / "log").read_text())
            yield words[3].rstrip(",")
        finally:
            process.terminate()
            process.wait()


def fuzz(url: str, *options: str, config: str = CONFIG) -> int:
    """Run schemathesis on the document of a service; return its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "schemathesis.toml"
        path.write_text(config)
        runner = tool(SCHEMATHESIS, "schemathesis")
        command = [*runner, "--config-file", str(path), "run", f"{url}/openapi.json", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def finished_job(url: str) -> str:
    """Compress a small checkpoint, and return the id of the job."""
    data = struct.pack("<64f", *range(64))
    header = json.dumps(
        {"a.weight": {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, len(data)]}}
    ).encode()
    content = struct.pack("<Q", len(header)) + header + data
    with httpx.Client(base_url=url, timeout=60) as http:
        form = {"spec": json.dumps({"rank": 2})}
        job = http.post("/v1/jobs", files={"checkpoint": ("model.safetensors", content)}, data=form).json()
        end = time.monotonic() + START_LIMIT_S
        while job["state"] != "succeeded":
            assert time.monotonic() < end, job
            job = http.get(f"/v1/jobs/{job['id']}", params={"wait": 1}).json()
    return str(job["id"])


def main() -> int:
    """Fuzz both ways; return 1 if an answer was wrong."""
    failed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), ECKART_API_KEYS=f"fuzz:{SECRET}") as url,
    ):
        failed |= fuzz(url, "--header", f"Authorization: Bearer {SECRET}", *sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as url:
        ids = f'\n[parameters]\njob_id = "{finished_job(url)}"\nfilename = "model.safetensors"\n'
        on_jobs = ("--include-path-regex", r"\{job_id\}", "--exclude-method", "DELETE")
        failed |= fuzz(
            url, *on_jobs, *sys.argv[1:], config=CONFIG.replace("\n[warnings]", ids + "\n[warnings]")
        )
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
