"""The directory `<data>/run`: the lock on the data directory, and the process ids of the children."""

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
    """The data directory is not writable, or another process uses it."""


@contextmanager
def locked_run_dir(run_dir: Path, *, wait_s: float = LEFTOVER_WAIT_S) -> Iterator[int]:
    """Create `run_dir`, lock it for this process and yield the lock's file descriptor.

    A child that inherits the descriptor holds the lock too. If only such a child of a dead process holds it,
    the child has `wait_s` to end.
    """
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataDirectoryError(
            f"cannot write to {run_dir}: {error.strerror}. Set ECKART_DATA_DIR to a directory that you may "
            "write to"
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
            if _is_alive(holder) or time.monotonic() > deadline:
                raise DataDirectoryError(
                    f"the data directory {run_dir.parent} is in use by process {holder or '(unknown)'} or "
                    "one of its children. Stop that process, or set ECKART_DATA_DIR to another directory"
                ) from error
        else:
            return
        time.sleep(0.1)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def write_own_pid(run_dir: Path, name: str) -> None:
    """Publish the id of this process; a reader sees the old id or the new one, never a part of it."""
    part = run_dir / f"{name}.pid.part"
    part.write_text(f"{os.getpid()}\n")
    part.replace(run_dir / f"{name}.pid")


def read_pid(run_dir: Path, name: str) -> int | None:
    try:
        return int((run_dir / f"{name}.pid").read_text())
    except FileNotFoundError:
        return None


def remove_pid(run_dir: Path, name: str) -> None:
    (run_dir / f"{name}.pid").unlink(missing_ok=True)
