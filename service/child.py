"""A child process: started, mourned, started again, ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.lifeline import die_with_parent, signal_group
from service.rundir import remove_pid, write_pid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

BACK_OFF_S = (0.5, 30.0)  # before the first restart, and at most
STEADY_S = 60.0  # a child that lived this long starts again with a fresh back-off
POLL_S = 0.02
STDERR_FD = 2


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """One row of the process table; rows start in order and end in reverse order."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ready: Callable[[], bool] = lambda: True  # the next row waits for it
    grace_s: float = 10.0  # from SIGTERM to SIGKILL
    orphan_signal: signal.Signals = signal.SIGKILL  # what it and its own children get when we are killed
    keep_fds: tuple[int, ...] = ()
    log: Path | None = None  # where it writes, if not on our standard error


class Child:
    """What runs, ran or will run for one row of the table."""

    def __init__(self, spec: ChildSpec, run_dir: Path) -> None:
        self.spec = spec
        self.deaths = 0
        self._run_dir = run_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at: float | None = None
        self._back_off_s = BACK_OFF_S[0]

    def start(self) -> None:
        # A session of its own: Ctrl-C at the terminal reaches only us, so that the order of the end is ours.
        self._process = subprocess.Popen(
            self.spec.command,
            env=self.spec.environment,
            stdin=subprocess.DEVNULL,
            stdout=STDERR_FD,  # our own standard output is for what we say when all is ready
            start_new_session=True,
            pass_fds=self.spec.keep_fds,
            preexec_fn=die_with_parent(self.spec.orphan_signal),  # noqa: PLW1509 - we run no other threads
        )
        self._started_at = time.monotonic()
        self._start_at = None
        write_pid(self._run_dir, self.spec.name, self._process.pid)

    def tend(self) -> None:
        """Notice a death, and start again when the back-off is over."""
        if self._process is not None and self._process.poll() is not None:
            self._mourn(self._process)
        elif self._start_at is not None and time.monotonic() >= self._start_at:
            self.start()

    def _mourn(self, process: subprocess.Popen[bytes]) -> None:
        # What it started would otherwise work on beside its successor's.
        signal_group(process.pid, signal.SIGKILL)
        self._process = None
        self.deaths += 1
        if time.monotonic() - self._started_at >= STEADY_S:
            self._back_off_s = BACK_OFF_S[0]
        log = f" (see {self.spec.log})" if self.spec.log else ""
        say(
            f"{self.spec.name} (process {process.pid}) {_end(process.returncode)}{log}; "
            f"starting it again in {self._back_off_s:g} s"
        )
        self._start_at = time.monotonic() + self._back_off_s
        self._back_off_s = min(2 * self._back_off_s, BACK_OFF_S[1])

    def stop(self, *, now: Callable[[], bool]) -> None:
        """Ask the child to end, kill it after its grace or when `now` says so, and leave nothing of it."""
        process, self._process, self._start_at = self._process, None, None
        if process is not None:
            self._end_process(process, now=now)
        remove_pid(self._run_dir, self.spec.name)

    def _end_process(self, process: subprocess.Popen[bytes], *, now: Callable[[], bool]) -> None:
        process.terminate()
        deadline = time.monotonic() + self.spec.grace_s
        while process.poll() is None and not now():
            if time.monotonic() > deadline:
                say(f"{self.spec.name} did not end within {self.spec.grace_s:g} s; killing it")
                break
            time.sleep(POLL_S)
        signal_group(process.pid, signal.SIGKILL)
        process.wait()


def say(message: str) -> None:
    """Write one line for the person at the terminal."""
    sys.stderr.write(f"eckart: {message}\n")
    sys.stderr.flush()


def _end(return_code: int) -> str:
    if return_code < 0:
        return f"was killed by signal {-return_code} ({signal.strsignal(-return_code)})"
    return f"ended with status {return_code}"
