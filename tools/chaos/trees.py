"""The service as the kill matrix starts it: `eckart serve`, or its processes singly, without supervisor."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from service.standalone.redis_server import find_server, server_command

if TYPE_CHECKING:
    from collections.abc import Mapping

START_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0
ROOT = Path(__file__).parents[2]
SETTINGS = {
    "ECKART_THREADS": "1",
    "ECKART_REAPER_S": "0.5",
    "ECKART_RETRY_PAUSE_S": "0.2",
    "ECKART_SHUTDOWN_S": "2",
    "ECKART_MIN_FREE_BYTES": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


class NotReadyError(Exception):
    """The service did not become ready, or did not end."""


class Tree(ABC):
    """A running service with a data directory of its own; `revive` starts what nobody else would."""

    victims: tuple[str, ...]
    lease_s: float

    def __init__(self, name: str, place: Path, settings: Mapping[str, str]) -> None:
        self.name = name
        self.data_dir = place / "data"
        self.data_dir.mkdir()
        self.log_path = place.with_name(f"{place.name}.log")  # not on the disk that gets full
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._lock = threading.Lock()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = False
        self._environment = {**os.environ, **SETTINGS, **settings}
        self._environment |= {
            "ECKART_DATA_DIR": str(self.data_dir),
            "ECKART_PORT": str(self.port),
            "ECKART_LEASE_S": str(self.lease_s),
        }

    @property
    @abstractmethod
    def redis_socket(self) -> Path: ...

    @property
    @abstractmethod
    def redis_dir(self) -> Path: ...

    @abstractmethod
    def _commands(self) -> Mapping[str, tuple[str, ...]]:
        """Return what this program has to start, in order."""

    @abstractmethod
    def pid(self, name: str) -> int | None:
        """Return the id of a process that may have ended."""

    @abstractmethod
    def falls_with(self, victim: str) -> list[int]:
        """Return the processes that somebody ends, a moment later, because the victim has ended."""

    def child(self) -> int | None:
        """Return a child of the worker, which has the jobs."""
        parent = self.pid("worker")
        with suppress(OSError):
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            return int(children[0]) if children else None
        return None

    def start(self) -> None:
        self._stopping = False
        self.revive()
        end = time.monotonic() + START_LIMIT_S
        while not self._answers("/readyz"):
            self.revive()
            if time.monotonic() > end:
                raise NotReadyError(f"{self.name} is not ready; see {self.log_path}")
            time.sleep(0.1)

    def revive(self) -> None:
        """Start each process of ours that does not run."""
        with self._lock:
            if self._stopping:
                return
            for name, command in self._commands().items():
                process = self._running.get(name)
                if process is None or process.poll() is not None:
                    self._running[name] = self._popen(command)

    def stop(self) -> None:
        """End the processes, the first one last."""
        with self._lock:
            self._stopping = True
            for process in reversed(self._running.values()):
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.send_signal(signal.SIGTERM)
                try:
                    process.wait(STOP_LIMIT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise NotReadyError(f"{process.args!r} of {self.name} did not end") from None
                # What a killed supervisor or worker left.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            self._running.clear()

    def reconcile(self) -> None:
        """Run `python -m service reconcile`."""
        environment = {**self._environment, "ECKART_REDIS_URL": f"unix://{self.redis_socket}"}
        command = (sys.executable, "-m", "service", "reconcile")
        with self.log_path.open("ab") as log:
            subprocess.run(command, env=environment, cwd=ROOT, stdout=log, stderr=log, check=True)

    def _popen(self, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                command, env=self._environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def _answers(self, path: str) -> bool:
        try:
            # Plain HTTP, unverified: a context of TLS takes longer to make than an answer.
            return httpx.get(self.url + path, timeout=5, verify=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


class SupervisedTree(Tree):
    """`eckart serve`: a job of a killed worker must go on long before its lease ends."""

    victims = ("api", "worker", "child", "redis", "supervisor")
    lease_s = 60.0

    @property
    def redis_socket(self) -> Path:
        return self.data_dir / "run" / "redis.sock"

    @property
    def redis_dir(self) -> Path:
        return self.data_dir / "redis"

    def _commands(self) -> Mapping[str, tuple[str, ...]]:
        return {"supervisor": (sys.executable, "-m", "eckart", "serve")}

    def pid(self, name: str) -> int | None:
        if name == "child":
            return self.child()
        if name == "supervisor":
            return self._running["supervisor"].pid
        with suppress(OSError, ValueError):
            return int((self.data_dir / "run" / f"{name}.pid").read_text())
        return None

    def falls_with(self, victim: str) -> list[int]:
        names = {"worker": ["child"], "supervisor": ["api", "worker", "child", "redis"]}.get(victim, [])
        return [pid for name in names if (pid := self.pid(name)) is not None]


class SingleTree(Tree):
    """Service, worker and Redis without a supervisor: what is killed is started again a moment later."""

    victims = ("api", "worker", "child", "redis")
    lease_s = 3.0

    @property
    def redis_socket(self) -> Path:
        return self.data_dir.parent / "r.sock"

    @property
    def redis_dir(self) -> Path:
        return self.data_dir.parent / "redis"

    def _commands(self) -> Mapping[str, tuple[str, ...]]:
        self.redis_dir.mkdir(exist_ok=True)
        self._environment["ECKART_REDIS_URL"] = f"unix://{self.redis_socket}"
        server = find_server(os.environ.get("PATH"))
        return {
            "redis": server_command(server, socket=self.redis_socket, data_dir=self.redis_dir),
            "worker": (sys.executable, "-m", "worker"),
            "api": (sys.executable, "-m", "service"),
        }

    def pid(self, name: str) -> int | None:
        return self.child() if name == "child" else self._running[name].pid

    def falls_with(self, victim: str) -> list[int]:
        # The kernel kills the children of a worker that ends, as Celery has asked it to.
        child = self.child() if victim == "worker" else None
        return [] if child is None else [child]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
