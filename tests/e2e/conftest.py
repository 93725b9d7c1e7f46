"""The whole service, as a user starts it: real processes, real HTTP, a data directory of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.torch import load_file

from eckart import Client
from examples.minilm import installed

START_LIMIT_S = 120
# Short, so that a lost worker is noticed within the patience of a test.
QUICK = {"ECKART_LEASE_S": "3", "ECKART_HEARTBEAT_S": "0.5", "ECKART_REAPER_S": "0.5"}


class Service:
    """A running `eckart serve`; `kill` takes one of its children away by SIGKILL."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self.data_dir = directory / "data"
        self.log_path = directory / "log.txt"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = os.environ | settings
        self.client = Client(self.url)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "eckart", "serve", "--port", str(self.port), "--data", self.data_dir]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        self.await_true(self.ready, START_LIMIT_S)

    def ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            # Plain HTTP, unverified: else each call makes a context of TLS, which the start waits for.
            return httpx.get(self.url + "/readyz", verify=False).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self.client.close()
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)

    def pid(self, name: str) -> int:
        return int((self.data_dir / "run" / f"{name}.pid").read_text())

    def children(self, name: str) -> list[int]:
        pid = self.pid(name)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children]

    def kill(self, name: str) -> None:
        """SIGKILL a child and all of its own children, and wait until it is there again."""
        pid = self.pid(name)
        for doomed in [pid, *self.children(name)]:
            os.kill(doomed, signal.SIGKILL)
        self.await_true(lambda: self._replaced(name, pid), START_LIMIT_S)

    def log(self) -> str:
        return self.log_path.read_text()

    def layers_begun(self, job_id: str) -> Counter[str]:
        """Count how often a worker began each layer of a job."""
        mark = f"job {job_id}: layer "
        return Counter(line.split(mark)[1].split(" ")[0] for line in self.log().splitlines() if mark in line)

    def await_true(self, condition: Callable[[], bool], limit_s: float = 60) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, self.log()[-4000:]
            time.sleep(0.02)

    def _replaced(self, name: str, pid: int) -> bool:
        try:
            return self.pid(name) != pid
        except (FileNotFoundError, ValueError):
            return False


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """One service for all tests that leave it well."""
    running = Service(tmp_path_factory.mktemp("service"), QUICK)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def minilm():
    """Find a real model: the checkpoint of all-MiniLM-L6-v2."""
    return installed("model.safetensors")


@pytest.fixture(scope="session")
def spectra(minilm):
    """Return the singular values of each matrix that a job may factor, by tensor, as numpy finds them."""
    weights = {name: tensor.double().numpy() for name, tensor in load_file(minilm).items()}
    return {
        name: np.linalg.svd(weight, compute_uv=False)
        for name, weight in weights.items()
        if weight.ndim == 2 and "embed" not in name
    }
