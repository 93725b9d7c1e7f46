"""Nothing outlives the supervisor, not even when it is killed without a chance to say so."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from service.rundir import read_pid

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Return what a new child calls so that it gets `number` when its parent dies; only Linux has that."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it died before the kernel knew our wish
            os.kill(os.getpid(), number)

    return arrange


@contextmanager
def guarded(run_dir: Path, orphan_signals: Mapping[str, signal.Signals]) -> Iterator[None]:
    """Keep a process beside this one that, when this one dies, signals the groups named in the pid files.

    The kernel tells our children of our death, but not what they have started themselves.
    """
    read_end, write_end = os.pipe()
    guard = os.fork()
    if guard == 0:
        os.close(write_end)
        os.setsid()  # out of the terminal's reach
        os.read(read_end, 1)  # returns when the other end closes: at our end, whichever it is
        for name, number in orphan_signals.items():
            signal_group(read_pid(run_dir, name), number)
        os._exit(0)
    os.close(read_end)
    try:
        yield
    finally:
        os.close(write_end)
        os.waitpid(guard, 0)


def signal_group(pid: int | None, number: signal.Signals) -> None:
    """Signal every process of the group that `pid` led, if there is one."""
    if pid is not None:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            os.killpg(pid, number)
