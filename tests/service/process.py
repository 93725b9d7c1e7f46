"""The API as a process of its own, which a test can kill and start again at the same address."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


class ApiProcess:
    """`python -m service` on a data directory; it can be killed and started again."""

    def __init__(self, data_dir, redis_url, **settings):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        given = {"data_dir": data_dir, "redis_url": redis_url, "port": self.port, "min_free_bytes": 0}
        given |= settings
        self._environment = os.environ | {
            f"ECKART_{name.upper()}": str(value) for name, value in given.items()
        }
        self._process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service"], cwd=ROOT, env=self._environment, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < end
            assert self._process.poll() is None
            time.sleep(0.02)

    def kill(self):
        """Send SIGKILL, and wait until the process is gone."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def restart(self):
        self.kill()
        self.start()

    def _answers(self):
        try:
            # Plain HTTP, unverified: else each call makes a context of TLS, which the start waits for.
            return httpx.get(self.url + "/livez", verify=False).status_code == 200
        except httpx.TransportError:
            return False
