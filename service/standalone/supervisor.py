"""Keep a table of child processes running, and end them in order."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.standalone.run_dir import read_pid, remove_pid, write_pid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType


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


NAP_S = 0.1
START_DEATHS_LIMIT = 3


class StartFailedError(Exception):
    """A child died again and again before everything was ready."""


class Supervisor:
    """Starts the children, restarts those that die, and ends all on SIGINT, SIGTERM or SIGHUP.

    A second signal kills what has not ended yet.
    """

    def __init__(self, table: Sequence[ChildSpec], *, run_dir: Path) -> None:
        self._children = [Child(spec, run_dir) for spec in table]
        self._guard = guarded(run_dir, {spec.name: spec.orphan_signal for spec in table})
        self._interrupts = 0

    def run(self, when_ready: Callable[[], None]) -> None:
        """Run until a signal says stop; call `when_ready` once, when every child is ready."""
        with self._guard, self._signals():
            try:
                if self._start_all():
                    when_ready()
                while not self._interrupts:
                    self._tend()
            finally:
                self._stop_all()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def count(_number: int, _frame: FrameType | None) -> None:
            self._interrupts += 1

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which is what nohup asks for
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
            while not self._interrupts and not child.spec.ready():
                self._tend()
                self._give_up_on_hopeless()
        return not self._interrupts

    def _tend(self) -> None:
        for child in self._children:
            child.tend()
        time.sleep(NAP_S)

    def _give_up_on_hopeless(self) -> None:
        for child in self._children:
            if child.deaths >= START_DEATHS_LIMIT:
                raise StartFailedError(
                    f"{child.spec.name} died {child.deaths} times before it was ready; "
                    f"{child.spec.log or 'what it wrote above'} says why"
                )

    def _stop_all(self) -> None:
        for child in reversed(self._children):
            child.stop(now=lambda: self._interrupts > 1)
