"""Everything on one machine in one foreground process tree: `python -m service.standalone`."""

from __future__ import annotations

import http.client
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pydantic import ValidationError

from schemas.problem import Problem
from service.settings import Settings
from service.standalone.address import Address, AddressUnavailableError
from service.standalone.redis_server import (
    EmbeddedServerError,
    answers,
    find_server,
    log_path,
    server_command,
    socket_place,
)
from service.standalone.run_dir import DataDirectoryError, held
from service.standalone.supervisor import ChildSpec, StartFailedError, Supervisor, say
from state.data_dir import DataDir
from state.settings import setting_faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


PATH = "/readyz"
PATIENCE_S = 10.0


class Readiness:
    """Asks whether all is ready; says what is missing after some patience, and then ever less often."""

    def __init__(self, address: Address, *, patience_s: float = PATIENCE_S) -> None:
        self._address = address
        self._pause_s = patience_s
        self._say_at: float | None = None

    def __call__(self) -> bool:
        """Ask once."""
        answer = self._address.get(PATH)
        if answer is not None and answer[0] == http.client.OK:
            return True
        now = time.monotonic()
        if self._say_at is None:
            self._say_at = now + self._pause_s
        if now >= self._say_at:
            say(f"not ready yet: {_missing(answer[1]) if answer else 'the API does not answer'}")
            self._pause_s *= 2
            self._say_at = now + self._pause_s
        return False


def _missing(body: bytes) -> str:
    try:
        problem = Problem.model_validate_json(body)
    except ValidationError:
        return f"{PATH} answers with something else than what is missing; another program may listen there"
    parts = (f"{part.pointer.removeprefix('/')}: {part.detail}" for part in problem.errors)
    return " ".join(parts) or problem.detail


def main() -> int:
    """Run until Ctrl-C or SIGTERM; return the exit status."""
    try:
        serve(Settings())
    except ValidationError as error:
        for fault in setting_faults(error):
            say(fault)
        return 1
    except (AddressUnavailableError, DataDirectoryError, EmbeddedServerError, StartFailedError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:  # before there was a child to end
        return 130
    return 0


def serve(settings: Settings) -> None:
    """Refuse early what cannot work, then run Redis, worker and API until a signal ends them.

    The rows end the other way round, so that Redis outlives those who use it.
    """
    layout = DataDir(settings.data_dir.absolute())
    environment = {**os.environ, "ECKART_DATA_DIR": str(layout.root)}
    rows = []
    with ExitStack() as stack:
        lock = stack.enter_context(held(layout.run))
        address = Address(settings.host, settings.port).checked()
        environment["ECKART_PORT"] = str(address.port)
        if not settings.redis_url:
            socket = stack.enter_context(redis_socket(layout.run))
            environment["ECKART_REDIS_URL"] = f"unix://{quote(str(socket))}"
            rows.append(redis_child(socket, layout.redis, lock=lock))
        rows += [worker_child(environment), api_child(environment, address, grace_s=settings.shutdown_s + 5)]
        Supervisor(rows, run_dir=layout.run).run(partial(announce, address, layout.root))


@contextmanager
def redis_socket(run_dir: Path) -> Iterator[Path]:
    with socket_place(run_dir, temp_dir=Path(tempfile.gettempdir())) as socket:
        if socket.parent != run_dir:
            say(f"the path {run_dir} is too long for a socket; the socket is {socket}")
        yield socket


def redis_child(socket: Path, data_dir: Path, *, lock: int) -> ChildSpec:
    data_dir.mkdir(mode=0o700, exist_ok=True)
    return ChildSpec(
        name="redis",
        command=server_command(find_server(os.environ.get("PATH")), socket_path=socket, data_dir=data_dir),
        environment=os.environ,
        ready=partial(answers, socket),
        keep_fds=(lock,),  # two servers must never write one append-only file
        orphan_signal=signal.SIGTERM,  # it writes down what it holds; the others lose nothing by SIGKILL
        log=log_path(data_dir),
    )


def worker_child(environment: Mapping[str, str]) -> ChildSpec:
    return ChildSpec(
        name="worker",
        command=(sys.executable, "-P", "-m", "worker"),
        environment=environment,
        grace_s=20,
    )


def api_child(environment: Mapping[str, str], address: Address, *, grace_s: float) -> ChildSpec:
    return ChildSpec(
        name="api",
        command=(sys.executable, "-P", "-m", "service"),
        environment=environment,
        ready=Readiness(address),
        grace_s=grace_s,
    )


def announce(address: Address, data_dir: Path) -> None:
    url = address.url
    form = """-F checkpoint=@model.safetensors -F 'spec={"method":"svd","rank":{"ratio":0.5}}'"""
    sys.stdout.write(f"Eckart listens on {url}, its data is in {data_dir}. Try: curl {form} {url}/v1/jobs\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
