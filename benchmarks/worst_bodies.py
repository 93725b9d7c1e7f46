"""What the dearest legal body of each kind costs the API, and how jobs are answered meanwhile."""

import http.client
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.options import Options
from benchmarks.processes import Watch
from benchmarks.standalone import Service, running
from benchmarks.table import mib, show
from schemas.format.companion import BYTES_PER_CONFIG_VALUE, FREE_CONFIG_VALUES, MAX_CONFIG_BYTES
from schemas.planning.glob import matching_ns

BOUNDARY = "eckart-benchmark"
HEADER_BYTES = 20_000_000
# What the service plans at most.
MAX_LAYERS = 100_000
ASKED_PER_S = 200
ASKERS = 8
ID = "worst"
PATTERN_CHARACTERS = 900
SMALL_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Body:
    """One request."""

    method: str
    target: str
    media: str
    content: bytes


def ask(options: Options) -> None:
    """Send each body twice, alone and while jobs are asked for; print what it took."""
    rows: list[tuple[str, ...]] = []
    with running(options.place, threads=options.threads) as service:
        _send(service, Body("PUT", "/v1/checkpoints/small/a.safetensors", "", _framed(_entries(100))))
        job = json.loads(_send(service, _plan("/v1/jobs", "small", {"rank": 1, "include": ["*"]}))[1])["id"]
        rows.append(("nothing", "", "", "", "", "", "", *_waits(service, job, partial(time.sleep, 5))))
        for name, (*before, last) in _bodies(options.scale).items():
            work = partial(_send, service, last)
            for body in before:
                _send(service, body)
            alone = _cost(service, work, len(last.content))
            _forget(service)
            for body in before:
                _send(service, body)
            rows.append((name, *alone, *_waits(service, job, work)))
            _forget(service)
    header = ("body", "MB", "status", "s", "CPU s", "CPU s/MB", "API grew by", "p50 ms", "p99 ms")
    show(
        f"The dearest legal bodies, and a job asked for {ASKED_PER_S} times a second meanwhile", header, rows
    )


def _bodies(scale: float) -> Mapping[str, list[Body]]:
    return {**_headers(scale), **_documents(scale), **_specs(scale), **_companions(scale)}


def _put(content: bytes, name: str = "a.safetensors") -> Body:
    return Body("PUT", f"/v1/checkpoints/{ID}/{name}", "", content)


def _tiny(scale: float) -> int:
    """Return how many tiny tensors a header holds."""
    return int(HEADER_BYTES * scale) // 56


def _headers(scale: float) -> Mapping[str, list[Body]]:
    tensors = _tiny(scale)
    padded = _framed(_entries(int(HEADER_BYTES * scale) // 700, pad=600))
    # Each is one byte of data before the one that is listed before it.
    spans = [
        f'"{at}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{at + 1}]}}'
        for at in range(tensors * 7 // 10)
    ]
    backwards = _framed(",".join(reversed(spans))) + bytes(len(spans))
    text = "\U0001f600" + "x" * int(HEADER_BYTES * scale)
    beyond = _framed(f'"__metadata__":{{"text":"{text}"}},{_entries(1)}')
    quarter = _framed(_entries(tensors // 4))
    return {
        "PUT, tiny tensors": [_put(_framed(_entries(tensors)))],
        "PUT, padded entries": [_put(padded)],
        "PUT, backwards": [_put(backwards)],
        "PUT, metadata beyond ASCII": [_put(beyond)],
        "form of four files": [_form({f"{at}.safetensors": quarter for at in range(4)})],
    }


def _documents(scale: float) -> Mapping[str, list[Body]]:
    put = _put(_framed(_entries(_tiny(scale))))
    layers = int(MAX_LAYERS * scale)
    same = _framed(_entries(0, names=[f"{number}.weight" for number in range(layers)]))
    shapes = ",".join(
        f'"{at}.weight":{{"dtype":"F32","shape":[0,{at + 8}],"data_offsets":[0,0]}}' for at in range(layers)
    )
    plan = _plan("/v1/plans", ID, {"rank": 1})
    return {
        "GET of the checkpoint": [put, Body("GET", f"/v1/checkpoints/{ID}?limit=10000", "", b"")],
        "plan": [put, plan],
        "plan, most layers": [_put(same), plan],
        "plan, each of another shape": [_put(_framed(shapes)), plan],
    }


def _specs(scale: float) -> Mapping[str, list[Body]]:
    names = [f"a{'a' * PATTERN_CHARACTERS}.{number}.weight" for number in range(int(4000 * scale) + 1)]
    put = _put(_framed(_entries(0, names=names)))
    modules = [name.removesuffix(".weight") for name in names]
    size = {"names": len(names), "characters": sum(map(len, modules))}

    def slow(pattern: str) -> Body:
        count = min(65_000 // len(pattern), int(0.9e9) // matching_ns(pattern, **size))
        return _plan("/v1/plans", ID, {"rank": 1, "exclude": [pattern] * max(1, min(1000, count))})

    return {
        "spec, long patterns": [put, slow(f"*{'a' * PATTERN_CHARACTERS}b")],
        "spec, sets between stars": [put, slow(f"*{'[ab]' * 8}c*")],
        "spec, many stars": [put, slow("*a" * 20 + "b")],
    }


def _companions(scale: float) -> Mapping[str, list[Body]]:
    weight_map = {f"{number}": f"{number % 9_999}.safetensors" for number in range(_tiny(scale))}
    index = json.dumps({"weight_map": weight_map}, separators=(",", ":")).encode()
    config_bytes = int(MAX_CONFIG_BYTES * scale)
    # A few less than are allowed, since all texts are of one length.
    values = int(0.96 * (FREE_CONFIG_VALUES + config_bytes // BYTES_PER_CONFIG_VALUE))
    width = config_bytes // values - len('"":"1234",')
    texts = ",".join(f'"{number:0{width}}":"\U0001f600"' for number in range(values))
    return {
        "index": [_put(index, "model.safetensors.index.json")],
        "config.json": [_put(f"{{{texts}}}".encode(), "config.json")],
    }


def _cost(service: Service, work: Callable[[], tuple[int, bytes]], sent: int) -> tuple[str, ...]:
    """Return the columns of a body that is sent alone."""
    begun, cpu_begun = time.perf_counter(), _cpu_s(service)
    with Watch(lambda: [service.pid("api")]) as watch:
        status, _ = work()
    spent_s, cpu_s = time.perf_counter() - begun, _cpu_s(service) - cpu_begun
    per_megabyte = f"{cpu_s / sent * 1e6:.2f}" if sent > SMALL_BYTES else ""
    columns = (f"{sent / 1e6:.2f}", str(status), f"{spent_s:.2f}", f"{cpu_s:.2f}", per_megabyte)
    return (*columns, mib(watch.growth_bytes))


def _waits(service: Service, job: str, work: Callable[[], object]) -> tuple[str, str]:
    """Return how long an answer for a job takes while the body is sent: the median and the worst percent."""
    ended = threading.Event()
    waits: list[float] = []
    askers = [threading.Thread(target=_ask_on, args=(service, job, ended, waits)) for _ in range(ASKERS)]
    for asker in askers:
        asker.start()
    work()
    ended.set()
    for asker in askers:
        asker.join()
    waits.sort()
    return f"{1e3 * waits[len(waits) // 2]:.0f}", f"{1e3 * waits[int(len(waits) * 0.99)]:.0f}"


def _ask_on(service: Service, job: str, ended: threading.Event, waits: list[float]) -> None:
    """Ask for a job at a fixed rate; a late answer delays the next question and counts from its time."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    due = time.perf_counter()
    while not ended.is_set():
        due += ASKERS / ASKED_PER_S
        time.sleep(max(0.0, due - time.perf_counter()))
        begun = time.perf_counter()
        connection.request("GET", f"/v1/jobs/{job}")
        connection.getresponse().read()
        waits.append(time.perf_counter() - begun)
        due = max(due, time.perf_counter() - 1)
    connection.close()


def _cpu_s(service: Service) -> float:
    fields = Path(f"/proc/{service.pid('api')}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _send(service: Service, body: Body) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=600)
    connection.request(
        body.method, body.target, body.content, {"Content-Type": body.media} if body.media else {}
    )
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status >= http.client.BAD_REQUEST:
        print(f"{body.method} {body.target}: {answer.status} {content[:300]!r}")
    return answer.status, content


def _forget(service: Service) -> None:
    _send(service, Body("DELETE", f"/v1/checkpoints/{ID}", "", b""))


def _plan(target: str, checkpoint: str, spec: Mapping[str, object]) -> Body:
    content = json.dumps({"checkpoint": checkpoint, "spec": spec}).encode()
    return Body("POST", target, "application/json", content)


def _form(files: Mapping[str, bytes]) -> Body:
    disposition = 'Content-Disposition: form-data; name="checkpoint"; filename'
    parts = b"".join(
        f'--{BOUNDARY}\r\n{disposition}="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files.items()
    )
    content = parts + f"--{BOUNDARY}--\r\n".encode()
    return Body("POST", f"/v1/checkpoints/{ID}", f"multipart/form-data; boundary={BOUNDARY}", content)


def _entries(count: int, *, pad: int = 0, names: list[str] | None = None) -> str:
    """Write entries without data: tiny ones, or with spaces inside, or with these names of weights."""
    kind = '"dtype":"F32","shape":[0,8]' if names else '"dtype":"U8","shape":[0]'
    entry = "{" + kind + "," + " " * pad + '"data_offsets":[0,0]}'
    return ",".join(f'"{name}":{entry}' for name in (names or map(str, range(count))))


def _framed(entries: str) -> bytes:
    header = ("{" + entries + "}").encode()
    return struct.pack("<Q", len(header)) + header
