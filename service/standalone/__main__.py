"""`python -m service.standalone`: Redis, worker and API on one machine, as one foreground process tree."""

from __future__ import annotations

import http.client
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from schemas.problem import Problem
from service.settings import Settings
from service.standalone.address import Address, AddressUnavailableError
from service.standalone.redis_server import (
    RedisServerError,
    find_server,
    is_ready,
    log_path,
    server_command,
    socket_path,
    socket_url,
)
from service.standalone.run_dir import DataDirectoryError, locked_run_dir
from service.standalone.supervisor import ChildSpec, StartFailedError, Supervisor, say
from state.data_dir import DataDir
from state.settings import setting_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def main() -> int:
    """Run until Ctrl-C or SIGTERM; return the exit status."""
    try:
        serve(Settings())
    except ValidationError as error:
        for line in setting_errors(error):
            say(line)
        return 1
    except (AddressUnavailableError, DataDirectoryError, RedisServerError, StartFailedError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:  # before the first child was started
        return 130
    return 0


def serve(settings: Settings) -> None:
    """Check what can be checked, then run Redis, worker and API until a signal arrives.

    The processes end in reverse order, so that Redis outlives its clients.
    """
    data_dir = DataDir(settings.data_dir.absolute())
    environment = {**os.environ, "ECKART_DATA_DIR": str(data_dir.root), "PYTHONPATH": import_path()}
    children = []
    with ExitStack() as stack:
        lock = stack.enter_context(locked_run_dir(data_dir.run))
        address = Address(settings.host, settings.port).resolve()
        environment["ECKART_PORT"] = str(address.port)
        if not settings.redis_url:
            socket = stack.enter_context(redis_socket(data_dir.run))
            environment["ECKART_REDIS_URL"] = socket_url(socket)
            children.append(redis_child(socket, data_dir.redis, lock=lock))
        children += [
            worker_child(without_keys(environment)),
            api_child(environment, address, grace_s=settings.shutdown_s + 5),
        ]
        needs_key = settings.api_keys is not None
        announce_it = partial(announce, address, data_dir.root, needs_key=needs_key)
        Supervisor(children, run_dir=data_dir.run).run(announce_it)


def without_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child that has no need to know the API keys."""
    return {name: value for name, value in environment.items() if name != "ECKART_API_KEYS"}


def import_path() -> str:
    """Return the PYTHONPATH of the children: first the folder that this package was imported from."""
    own = str(Path(__file__).parents[2])
    return os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def redis_socket(run_dir: Path) -> Iterator[Path]:
    with socket_path(run_dir, temp_dir=Path(tempfile.gettempdir())) as socket:
        if socket.parent != run_dir:
            say(f"the path {run_dir} is too long for a socket, so the socket is {socket}")
        yield socket


def redis_child(socket: Path, data_dir: Path, *, lock: int) -> ChildSpec:
    data_dir.mkdir(mode=0o700, exist_ok=True)
    return ChildSpec(
        name="redis",
        command=server_command(find_server(os.environ.get("PATH")), socket=socket, data_dir=data_dir),
        environment=without_keys(os.environ),
        ready=partial(is_ready, socket),
        keep_fds=(lock,),  # while it runs, no second server may write the same append-only file
        orphan_signal=signal.SIGTERM,  # lets it flush its file; the others lose nothing by SIGKILL
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
        ready=ReadinessProbe(address),
        grace_s=grace_s,
    )


def announce(address: Address, data_dir: Path, *, needs_key: bool) -> None:
    url = address.url
    key = '-H "Authorization: Bearer $ECKART_API_KEY" ' if needs_key else ""
    fields = """-F checkpoint=@model.safetensors -F 'spec={"method":"svd","rank":{"ratio":0.5}}'"""
    with suppress(OSError):  # a full disk, if the output goes to a file
        sys.stdout.write(
            f"Eckart listens on {url}, its data is in {data_dir}. Try: curl {key}{fields} {url}/v1/jobs\n"
        )
        sys.stdout.flush()


class ReadinessProbe:
    """Polls /readyz; says what is missing after a while, and again after ever longer intervals."""

    PATH = "/readyz"

    def __init__(self, address: Address, *, first_message_s: float = 10.0) -> None:
        self._address = address
        self._interval_s = first_message_s
        self._message_at: float | None = None

    def __call__(self) -> bool:
        answer = self._address.get(self.PATH)
        if answer is not None and answer[0] == http.client.OK:
            return True
        now = time.monotonic()
        if self._message_at is None:
            self._message_at = now + self._interval_s
        if now >= self._message_at:
            say(f"not ready yet: {self._missing(answer[1]) if answer else 'the API does not answer'}")
            self._interval_s *= 2
            self._message_at = now + self._interval_s
        return False

    def _missing(self, body: bytes) -> str:
        try:
            problem = Problem.model_validate_json(body)
        except ValidationError:
            return f"{self.PATH} gives an unexpected answer; another program may listen there"
        parts = (f"{part.pointer.removeprefix('/')}: {part.detail}" for part in problem.errors)
        return " ".join(parts) or problem.detail


if __name__ == "__main__":
    sys.exit(main())
