"""The directory `<data>/run`: who holds the data directory, and the process ids of its children."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


LEFTOVER_WAIT_S = 15.0


class DataDirectoryError(Exception):
    """The data directory cannot be used, or another start uses it."""


@contextmanager
def held(run_dir: Path, *, wait_s: float = LEFTOVER_WAIT_S) -> Iterator[int]:
    """Make `run_dir`, hold it for this process and yield the lock's file descriptor.

    A child that inherits the descriptor holds the lock too. When only such a child is left of a dead start,
    it is given `wait_s` to end.
    """
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataDirectoryError(
            f"cannot write in {run_dir}: {error.strerror}. Set ECKART_DATA_DIR to a directory that you may "
            "write in"
        ) from error
    try:
        _lock(descriptor, run_dir, wait_s=wait_s)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, run_dir: Path, *, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode().strip()
            if _alive(holder) or time.monotonic() > deadline:
                raise DataDirectoryError(
                    f"the data directory {run_dir.parent} is in use by process {holder or '(unknown)'} or by "
                    "one that it started. Stop that one first, or set ECKART_DATA_DIR to another directory"
                ) from error
        else:
            return
        time.sleep(0.1)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def write_pid(run_dir: Path, name: str, pid: int) -> None:
    """Publish a child's process id; a reader sees the old one or the new one, never half of one."""
    part = run_dir / f"{name}.pid.part"
    part.write_text(f"{pid}\n")
    part.replace(run_dir / f"{name}.pid")


def read_pid(run_dir: Path, name: str) -> int | None:
    try:
        return int((run_dir / f"{name}.pid").read_text())
    except FileNotFoundError:
        return None


def remove_pid(run_dir: Path, name: str) -> None:
    (run_dir / f"{name}.pid").unlink(missing_ok=True)
