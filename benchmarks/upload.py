"""The time of an upload compared with a bare loop that receives, hashes and writes the same bytes."""

import http.client
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.options import Options
from benchmarks.processes import Watch
from benchmarks.receiver import bare_receiver
from benchmarks.sender import Upload, as_form, send
from benchmarks.standalone import Service, running
from benchmarks.table import mib, seconds, show

FILE_BYTES = 2 << 30
BLOCK_BYTES = 16 << 20
ID = "upload"
PEER = "bare loop, fsync"
Send = Callable[[], tuple[float, str]]


def ask(options: Options) -> None:
    """Send the same file in every way, in turns; print the medians."""
    file = _make_file(options.place / "model.safetensors", nbytes=int(FILE_BYTES * options.scale))
    with running(options.place, threads=options.threads) as service, _ways(service, file) as ways:
        times: dict[str, list[float]] = {name: [] for name in ways}
        growth: dict[str, list[int]] = {name: [] for name in ways}
        begin_bytes = Watch(lambda: [service.pid("api")]).sample()
        digests = set()
        for _ in range(options.rounds):
            for name, way in ways.items():
                os.sync()
                with Watch(lambda: [service.pid("api")]) as watch:
                    spent_s, digest = way()
                times[name].append(spent_s)
                growth[name].append(watch.peak_bytes - begin_bytes)
                digests.add(digest)
                _forget(service)
    if len(digests) != 1:
        raise RuntimeError(f"the same file arrived as {digests}")
    _show(times, growth, nbytes=file.stat().st_size)


@contextmanager
def _ways(service: Service, file: Path) -> Iterator[Mapping[str, Send]]:
    raw = Upload(file, f"/v1/checkpoints/{ID}/{file.name}")
    form = as_form(file, f"/v1/checkpoints/{ID}")
    target = service.data_dir / "bare"
    with (
        bare_receiver(target, durable=True) as durable,
        bare_receiver(target, durable=False) as quick,
    ):
        ways: dict[str, Send] = {
            PEER: lambda: send(raw, durable),
            "PUT": lambda: send(raw, service.port),
            "multipart": lambda: send(form, service.port),
            "bare loop, no fsync": lambda: send(raw, quick),
        }
        if shutil.which("curl"):
            ways |= {
                "curl -T to bare loop": lambda: _curl(file, durable),
                "curl -T": lambda: _curl(file, service.port),
            }
        yield ways


def _curl(file: Path, port: int) -> tuple[float, str]:
    begun = time.perf_counter()
    url = f"http://127.0.0.1:{port}/v1/checkpoints/{ID}/"
    # The bare loop does not answer `Expect: 100-continue`; curl would wait a second for that.
    command = ["curl", "-sS", "--fail-with-body", "-H", "Expect:", "-T", str(file), url]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - begun, json.loads(done.stdout)["sha256"]


def _forget(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port)
    connection.request("DELETE", f"/v1/checkpoints/{ID}")
    connection.getresponse()
    connection.close()


def _make_file(path: Path, *, nbytes: int) -> Path:
    """Write a valid safetensors file of that many bytes, which a disk cannot compress."""
    head_bytes = 128
    data_bytes = nbytes - 8 - head_bytes
    header = {"w": {"dtype": "U8", "shape": [data_bytes], "data_offsets": [0, data_bytes]}}
    block = random.Random(0).randbytes(BLOCK_BYTES)
    with path.open("wb") as file:
        file.write(head_bytes.to_bytes(8, "little") + json.dumps(header).encode().ljust(head_bytes))
        for begin in range(0, data_bytes, BLOCK_BYTES):
            file.write(block[: data_bytes - begin])
    return path


def _show(times: Mapping[str, list[float]], growth: Mapping[str, list[int]], *, nbytes: int) -> None:
    peer_s = median(times[PEER])
    rows = [
        (
            name,
            f"{median(spent):.2f}",
            f"{nbytes / 2**20 / median(spent):.0f}",
            f"{median(spent) / peer_s:.2f}",
            mib(max(growth[name])),
            seconds(spent),
        )
        for name, spent in times.items()
    ]
    header = ("way", "median s", "MiB/s", "ratio", "API grew to", "rounds, s")
    show(
        f"Upload of {nbytes / 2**30:.2f} GiB over loopback; target: PUT at most 2.0 and 64 MiB", header, rows
    )
