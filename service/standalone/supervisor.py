"""Keeps a table of child processes running, ends them in order, and leaves none behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from service.standalone.run_dir import read_pid, remove_pid, write_own_pid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

# Before the second restart, and at most; the first is at once.
BACK_OFF_S = (0.5, 10.0)
STEADY_S = 10.0  # a child that ran for this long is restarted at once again
POLL_INTERVAL_S = 0.1
STOP_POLL_INTERVAL_S = 0.02
START_DEATHS_LIMIT = 3
STDERR_FD = 2


class StartFailedError(Exception):
    """A child refused its settings, or died repeatedly, before everything was ready."""


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """One row of the process table; rows start in order and end in reverse order."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ready: Callable[[], bool] = lambda: True  # the next row starts when it returns true
    grace_s: float = 10.0  # from SIGTERM to SIGKILL
    orphan_signal: signal.Signals = signal.SIGKILL  # sent to the child's group if the supervisor is killed
    keep_fds: tuple[int, ...] = ()
    log: Path | None = None  # where the child writes, if not to our standard error


class Supervisor:
    """Starts the children, restarts those that die, and ends all on SIGINT, SIGTERM or SIGHUP.

    A second signal kills what has not ended yet.
    """

    def __init__(self, table: Sequence[ChildSpec], *, run_dir: Path) -> None:
        self._children = [Child(spec, run_dir) for spec in table]
        self._watchdog = watchdog(run_dir, {spec.name: spec.orphan_signal for spec in table})
        self._interrupts = 0

    def run(self, when_ready: Callable[[], None]) -> None:
        """Run until a signal arrives; call `when_ready` once, when every child is ready."""
        with self._watchdog, self._signals():
            try:
                if self._start_all():
                    when_ready()
                while not self._interrupts:
                    self._poll()
            finally:
                self._stop_all()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def count(_number: int, _frame: FrameType | None) -> None:
            self._interrupts += 1

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start_all(self) -> bool:
        for child in self._children:
            if self._interrupts:
                return False
            child.start()
            self._wait_until_ready(child)
        return not self._interrupts

    def _wait_until_ready(self, child: Child) -> None:
        while not self._interrupts and not child.spec.ready():
            self._poll()
            for each in self._children:
                if each.refused_settings:
                    raise StartFailedError(
                        f"{each.spec.name} cannot run with these settings; it has said why"
                    )
                if each.deaths >= START_DEATHS_LIMIT:
                    raise StartFailedError(
                        f"{each.spec.name} died {each.deaths} times before it was ready; see "
                        f"{each.spec.log or 'its output above'}"
                    )

    def _poll(self) -> None:
        for child in self._children:
            child.poll()
        time.sleep(POLL_INTERVAL_S)

    def _stop_all(self) -> None:
        for child in reversed(self._children):
            child.stop(now=lambda: self._interrupts > 1)


class Child:
    """The child process of one row of the table, with restart and back-off."""

    def __init__(self, spec: ChildSpec, run_dir: Path) -> None:
        self.spec = spec
        self.deaths = 0
        self.refused_settings = False
        self._run_dir = run_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at: float | None = None
        self._back_off_s = 0.0

    def start(self) -> None:
        self._start_at = None
        try:
            self._process = self._popen()
        except (OSError, subprocess.SubprocessError) as error:
            # For example a full disk, on which the pid file cannot be written.
            self._restart_later(f"{self.spec.name} cannot be started ({error})")
        self._started_at = time.monotonic()

    def _popen(self) -> subprocess.Popen[bytes]:
        # In a session of its own, Ctrl-C at the terminal reaches only the supervisor, which ends it in order.
        return subprocess.Popen(
            self.spec.command,
            env=self.spec.environment,
            stdin=subprocess.DEVNULL,
            stdout=STDERR_FD,  # our standard output is for the line that says that all is ready
            start_new_session=True,
            pass_fds=self.spec.keep_fds,
            # The child writes its pid file itself: see `watchdog`.
            preexec_fn=partial(write_own_pid, self._run_dir, self.spec.name),  # noqa: PLW1509 - no threads here
        )

    def poll(self) -> None:
        """Notice that the child has exited, or start it again when the back-off is over."""
        if self._process is not None and self._process.poll() is not None:
            self._on_exit(self._process)
        elif self._start_at is not None and time.monotonic() >= self._start_at:
            self.start()

    def _on_exit(self, process: subprocess.Popen[bytes]) -> None:
        # Otherwise the processes that it started would keep running next to those of its successor.
        signal_group(process.pid, signal.SIGKILL)
        self._process = None
        self.refused_settings = process.returncode == os.EX_CONFIG
        if time.monotonic() - self._started_at >= STEADY_S:
            self._back_off_s = 0.0
        log = f" (see {self.spec.log})" if self.spec.log else ""
        self._restart_later(
            f"{self.spec.name} (process {process.pid}) {_describe_exit(process.returncode)}{log}"
        )

    def _restart_later(self, why: str) -> None:
        self.deaths += 1
        say(f"{why}; restarting it {f'in {self._back_off_s:g} s' if self._back_off_s else 'at once'}")
        self._start_at = time.monotonic() + self._back_off_s
        self._back_off_s = min(2 * self._back_off_s or BACK_OFF_S[0], BACK_OFF_S[1])

    def stop(self, *, now: Callable[[], bool]) -> None:
        """Terminate the child; kill its group after `grace_s`, or once `now` returns true."""
        process, self._process, self._start_at = self._process, None, None
        if process is not None:
            self._terminate(process, now=now)
        remove_pid(self._run_dir, self.spec.name)

    def _terminate(self, process: subprocess.Popen[bytes], *, now: Callable[[], bool]) -> None:
        process.terminate()
        deadline = time.monotonic() + self.spec.grace_s
        while process.poll() is None and not now():
            if time.monotonic() > deadline:
                say(f"{self.spec.name} did not end within {self.spec.grace_s:g} s; killing it")
                break
            time.sleep(STOP_POLL_INTERVAL_S)
        signal_group(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def watchdog(run_dir: Path, orphan_signals: Mapping[str, signal.Signals]) -> Iterator[None]:
    """Fork a process that signals the children's groups, named by their pid files, when this process dies.

    It waits for the end of a pipe whose other end only this process holds, and for a moment each child: from
    fork to exec, in which the child writes its pid file. So it never reads the pid files too early.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.setsid()  # Ctrl-C at the terminal must not reach it
        os.read(read_end, 1)  # returns when the other end closes, however this process ends
        for name, number in orphan_signals.items():
            signal_group(read_pid(run_dir, name), number)
        os._exit(0)
    os.close(read_end)
    try:
        yield
    finally:
        os.close(write_end)
        os.waitpid(pid, 0)


def signal_group(pid: int | None, number: signal.Signals) -> None:
    """Signal every process of the group that `pid` led, if there is one."""
    if pid is not None:
        with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for a group of zombies
            os.killpg(pid, number)


def say(message: str) -> None:
    """Write one line for the person at the terminal; a log on a full disk must not end the supervisor."""
    with suppress(OSError):
        sys.stderr.write(f"eckart: {message}\n")
        sys.stderr.flush()


def _describe_exit(return_code: int) -> str:
    if return_code < 0:
        return f"was killed by signal {-return_code} ({signal.strsignal(-return_code)})"
    return f"ended with status {return_code}"
