"""The service under test: the processes that `make serve` starts."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
START_S = 120.0
STOP_S = 60.0
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Service:
    """A running service."""

    port: int
    data_dir: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pid(self, name: str) -> int:
        """Return the process id of its api, worker or redis."""
        return int((self.data_dir / "run" / f"{name}.pid").read_text())


@contextmanager
def running(place: Path, *, threads: int, cache: bool = True) -> Iterator[Service]:
    """Run the whole service on a free port until the block ends, with or without the cache."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    service = Service(port, place / "data")
    settings = {
        "ECKART_HOST": "127.0.0.1",
        "ECKART_PORT": str(port),
        "ECKART_DATA_DIR": str(service.data_dir),
        "ECKART_THREADS": str(threads),
    }
    if not cache:
        settings["ECKART_CACHE_BYTES"] = "0"
    log = place / "service.log"
    others = {name: value for name, value in os.environ.items() if not name.startswith("ECKART_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "eckart", "serve"],
            cwd=ROOT,
            env=others | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await_ready(service, process, log)
        yield service
    except Exception:
        sys.stderr.write(log.read_text())
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)


def _await_ready(service: Service, process: subprocess.Popen[bytes], log: Path) -> None:
    ends_at = time.monotonic() + START_S
    while not _ready(service):
        if process.poll() is not None or time.monotonic() > ends_at:
            raise RuntimeError(f"the service did not start; {log} says why")
        time.sleep(0.1)
    time.sleep(SETTLE_S)


def _ready(service: Service) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()
