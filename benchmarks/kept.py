"""What requests and a restart of Redis cost where few and where many jobs and checkpoints are kept."""

import http.client
import json
import os
import shutil
import signal
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks.kept_data import Kept, fill, put_decomposition
from benchmarks.options import Options
from benchmarks.standalone import Service, running
from benchmarks.table import show
from state.cache.store import DecompositionCache

FEW, MANY = 200, 20_000
REPEATED = 7
BOUNDARY = "eckart-benchmark"
# A service whose API has used less than this of a second has done what it does after its start.
IDLE_CPU_S = 0.05
LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Place:
    """A running service, what it keeps, and the numbers of what a way may use up."""

    service: Service
    kept: Kept
    numbers: "count[int]"

    def ask(self, method: str, target: str, content: bytes = b"", media: str = "") -> dict[str, object]:
        """Send a request, which must succeed, and return the document of its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=LIMIT_S)
        connection.request(method, target, content, {"Content-Type": media} if media else {})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{method} {target}: {answer.status} {body[:300]!r}")
        return dict(json.loads(body)) if body else {}

    def wait_for(self, job_id: str) -> None:
        """Wait until a job has ended, which it must do well."""
        while (state := self.ask("GET", f"/v1/jobs/{job_id}?wait=50")["state"]) in {"queued", "running"}:
            pass
        if state != "succeeded":
            raise RuntimeError(f"job {job_id} is {state}")

    def seconds(self, method: str, target: str, content: bytes = b"", media: str = "") -> float:
        begun = time.perf_counter()
        self.ask(method, target, content, media)
        return time.perf_counter() - begun


def ask(options: Options) -> None:
    """Fill two data directories, start a service on each, and take turns between the two."""
    counts = (FEW, max(FEW, int(MANY * options.scale)))
    with ExitStack() as stack:
        places = [_filled(stack, options, number) for number in counts]
        spent: dict[str, list[list[float]]] = {}
        for name, way in WAYS.items():
            rounds = [[way(place) for place in places] for _ in range(max(REPEATED, options.rounds))]
            spent[name] = [list(each) for each in zip(*rounds, strict=True)]
        for name, way in RESTART.items():
            spent[name] = [[way(place)] for place in places]
    rows = [
        (name, *(_shown(each) for each in columns), f"{median(columns[1]) / median(columns[0]):.2f}")
        for name, columns in spent.items()
    ]
    header = ("way", *(f"{number} kept, median ms (least, most)" for number in counts), "ratio")
    show("Requests by the number of kept one-shot jobs, each with its checkpoint", header, rows)


def _shown(spent: Sequence[float]) -> str:
    return f"{1e3 * median(spent):.1f} ({1e3 * min(spent):.1f}, {1e3 * max(spent):.1f})"


def _filled(stack: ExitStack, options: Options, number: int) -> Place:
    """Let a service do one job, copy what that left, and start a service on all the copies."""
    folder = options.place / str(number)
    folder.mkdir()
    with running(folder, threads=options.threads) as service:
        place = Place(service, Kept([], []), count())
        job_id = str(place.ask("POST", "/v1/jobs", *_form())["id"])
        place.wait_for(job_id)
    kept = fill(service.data_dir, job_id, number)
    os.sync()
    place = Place(stack.enter_context(running(folder, threads=options.threads)), kept, count(2))
    place.ask("PUT", "/v1/checkpoints/mine/model.safetensors", _model())
    _wait_until_idle(place)
    return place


def _wait_until_idle(place: Place) -> None:
    """Wait until every kept job is there and the service has nothing left to do of its start."""
    while not _has_all(place):
        time.sleep(0.2)
    place.ask("GET", "/v1/checkpoints")
    used_s = _cpu_s(place)
    while True:
        time.sleep(1)
        used_s, before_s = _cpu_s(place), used_s
        if used_s - before_s < IDLE_CPU_S:
            return


def _has_all(place: Place) -> bool:
    """Whether the service is ready, and lists the oldest of the kept jobs."""
    try:
        place.ask("GET", "/readyz")
        return place.ask("GET", f"/v1/jobs/{place.kept.jobs[0]}")["state"] == "succeeded"
    except (OSError, RuntimeError, http.client.HTTPException):
        return False


def _cpu_s(place: Place) -> float:
    fields = Path(f"/proc/{place.service.pid('api')}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _delete_checkpoint(place: Place) -> float:
    return place.seconds("DELETE", f"/v1/checkpoints/{place.kept.checkpoints[-next(place.numbers)]}")


def _delete_job(place: Place) -> float:
    return place.seconds("DELETE", f"/v1/jobs/{place.kept.jobs[-next(place.numbers)]}")


def _page(place: Place, what: str) -> float:
    return place.seconds("GET", f"/v1/{what}?limit=50")


def _second_page(place: Place, what: str) -> float:
    cursor = place.ask("GET", f"/v1/{what}?limit=50")["next_cursor"]
    return place.seconds("GET", f"/v1/{what}?limit=50&cursor={cursor}")


def _submit(place: Place) -> float:
    """Submit a job for a stored checkpoint; what the worker then does is not counted."""
    content = json.dumps({"checkpoint": "mine", "spec": {"rank": 1}}).encode()
    begun = time.perf_counter()
    job = place.ask("POST", "/v1/jobs", content, "application/json")
    spent_s = time.perf_counter() - begun
    place.wait_for(str(job["id"]))
    return spent_s


def _submit_files(place: Place) -> float:
    begun = time.perf_counter()
    job = place.ask("POST", "/v1/jobs", *_form())
    spent_s = time.perf_counter() - begun
    place.wait_for(str(job["id"]))
    return spent_s


def _put_into_cache(place: Place) -> float:
    cache = DecompositionCache.shared(place.service.data_dir, limit_bytes=1 << 40)
    sha256 = f"{next(place.numbers):064x}"
    begun = time.perf_counter()
    put_decomposition(cache, sha256)
    return time.perf_counter() - begun


def _restart_redis(place: Place) -> float:
    """Kill Redis and remove its data; return the time until every job is there again."""
    pid = place.service.pid("redis")
    shutil.rmtree(place.service.data_dir / "redis")
    (place.service.data_dir / "redis").mkdir(mode=0o700)
    os.kill(pid, signal.SIGKILL)
    begun = time.perf_counter()
    while place.service.pid("redis") == pid or not _has_all(place):
        if time.perf_counter() - begun > LIMIT_S:
            raise RuntimeError("the service is not ready again")
        time.sleep(0.05)
    return time.perf_counter() - begun


WAYS: Mapping[str, Callable[[Place], float]] = {
    "DELETE of a checkpoint": _delete_checkpoint,
    "DELETE of a one-shot job": _delete_job,
    "page of 50 jobs": partial(_page, what="jobs"),
    "page of 50 checkpoints": partial(_page, what="checkpoints"),
    "second page of checkpoints": partial(_second_page, what="checkpoints"),
    "POST of a job": _submit,
    "POST of a one-shot job": _submit_files,
    "put into the cache": _put_into_cache,
}
RESTART = {"restart of a Redis that lost its data": _restart_redis}


def _model() -> bytes:
    entry = {"dtype": "F32", "shape": [16, 16], "data_offsets": [0, 1024]}
    header = json.dumps({"a.weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<256f", *range(256))


def _form() -> tuple[bytes, str]:
    """Return the body of a one-shot job, and its media type."""
    parts = {
        'name="checkpoint"; filename="model.safetensors"': _model(),
        'name="spec"': json.dumps({"rank": 1}).encode(),
    }
    content = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + body + b"\r\n"
        for name, body in parts.items()
    )
    return content + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"
