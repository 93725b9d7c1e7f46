"""The kinds of kills, drawn by a seed, and how long each keeps the service from going on."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from tools.chaos.connection import Connection
from tools.chaos.ledger import LATE, LOST, Ledger
from tools.chaos.moments import ANY, MOMENTS, await_moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.chaos.trees import Tree
    from tools.chaos.worklog import WorkLog

SIGNALS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGSTOP")
WIPED, EMPTIED, SET_BACK, DISK_FULL = "wiped", "emptied", "set back", "full"
POLL_S = 0.02
# What is waited for before a round counts as lost, beyond the limit that it is held to.
PATIENCE_S = 60.0
LIMIT_S = 15.0
# Of SIGTERM: longer than any process has until its supervisor kills it.
DEATH_LIMIT_S = 30.0
BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Kill:
    """Whom to hit, how, at which moment; `for_s` is how long a stopped process or a full disk stays so."""

    victim: str
    means: str
    moment: str
    delay_s: float
    for_s: float

    @property
    def kind(self) -> str:
        return f"{self.victim} {self.means}"


def draw(seed: str, victims: tuple[str, ...], *, lease_s: float, disk: bool) -> Kill:
    """Return the kill of a round."""
    generator = random.Random(seed)
    victim = generator.choice([*victims, "worker", "child", "redis data", *(["disk"] if disk else [])])
    if victim == "redis data":
        means = generator.choice((WIPED, EMPTIED, SET_BACK))
    else:
        means = DISK_FULL if victim == "disk" else generator.choice(SIGNALS)
    moment = generator.choice(MOMENTS)
    # Sometimes longer than a short lease, so that another attempt begins meanwhile.
    for_s = generator.uniform(0.2, 1.5 * min(lease_s, 3.0))
    delay_s = generator.uniform(0, 1.0 if moment == ANY else 0.02)
    return Kill(victim, means, moment, delay_s, for_s)


class Killer:
    """Carries out kills in one tree, and measures from the signal to what goes on again."""

    def __init__(self, tree: Tree, ledger: Ledger, work: WorkLog) -> None:
        self._tree = tree
        self._ledger = ledger
        self._work = work
        self._connection = Connection(tree.url, ledger)
        self._copy = tree.data_dir.parent / "earlier"

    def carry_out(self, kill: Kill, *, slack: float) -> float:
        """Wait for the moment, strike, and return the seconds until the service went on."""
        await_moment(kill.moment, self._tree.data_dir, self._ledger, delay_s=kill.delay_s)
        held = self._held()
        struck, over = self._strike(kill)
        took = self._await_recovery(kill.victim, held, over) + over - struck
        limit_s = slack * (LIMIT_S + (0 if self._tree.lease_s > LIMIT_S else self._tree.lease_s))
        if took > limit_s:
            self._ledger.fault(LATE, f"{took:.1f} s until the service went on, at the moment `{kill.moment}`")
        return took

    def keep_copy(self) -> None:
        """Copy the files of Redis, to which a later round sets it back."""
        with self._stopped("redis"):
            shutil.rmtree(self._copy, ignore_errors=True)
            with suppress(OSError, shutil.Error):
                shutil.copytree(self._tree.redis_dir / "appendonlydir", self._copy)

    def _strike(self, kill: Kill) -> tuple[float, float]:
        """Return when the recovery begins, and when all that is seen is of what came after it.

        It begins with the signal, or when the process goes on or the disk has space again.
        """
        if kill.victim == "redis data":
            since = time.monotonic()
            self._lose_data(kill.means)
            return since, time.monotonic()
        if kill.victim == "disk":
            with full_disk(self._tree.data_dir):
                time.sleep(kill.for_s)
            since = time.monotonic()
        elif kill.means == "SIGSTOP":
            with self._stopped(kill.victim):
                time.sleep(kill.for_s)
            since = time.monotonic()
        else:
            pid, others = self._tree.pid(kill.victim), self._tree.falls_with(kill.victim)
            since = time.monotonic()
            send(pid, signal.Signals[kill.means])
            for each in (pid, *others):
                await_death(each)
        return since, time.monotonic()

    def _lose_data(self, how: str) -> None:
        if how == WIPED:
            with suppress(redis.RedisError):
                redis.Redis(unix_socket_path=str(self._tree.redis_socket)).flushall()
            return
        pid = self._tree.pid("redis")
        send(pid, signal.SIGKILL)
        await_death(pid)
        files = self._tree.redis_dir / "appendonlydir"
        with suppress(OSError, shutil.Error):
            shutil.rmtree(files)
            if how == SET_BACK and self._copy.exists():
                shutil.copytree(self._copy, files)

    @contextmanager
    def _stopped(self, victim: str) -> Iterator[None]:
        pid = self._tree.pid(victim)
        send(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            send(pid, signal.SIGCONT)

    def _held(self) -> list[str]:
        """Return the jobs that an attempt holds now."""
        jobs = self._tree.data_dir / "jobs"
        return [each.id for each in self._ledger.open_jobs() if any((jobs / each.id).glob("attempt-*.lock"))]

    def _await_recovery(self, victim: str, held: list[str], since: float) -> float:
        """Wait until the API answers, and for all but the API, until the jobs of this moment go on."""
        answered = False
        worked = victim == "api"
        while True:
            self._tree.revive()
            answered = answered or self._connection.once("GET", "/v1/jobs", params={"limit": 1}) is not None
            worked = worked or self._has_worked(held, since)
            took = time.monotonic() - since
            if answered and worked:
                return took
            if took > PATIENCE_S + 2 * self._tree.lease_s:
                what = "jobs go on" if answered else "the API answers"
                self._ledger.fault(LOST, f"{took:.0f} s after the signal, it is not so that {what}")
                return took
            time.sleep(POLL_S)

    def _has_worked(self, held: list[str], since: float) -> bool:
        waiting = {each.id for each in self._ledger.open_jobs() if not each.cancel_asked}
        if held:
            return all(self._work.last(job) > since for job in held if job in waiting)
        return not waiting or self._work.last() > since


def send(pid: int | None, number: signal.Signals) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def await_death(pid: int | None) -> None:
    """Wait until a process has ended, also one that nobody has asked for its status yet."""
    end = time.monotonic() + DEATH_LIMIT_S
    with suppress(OSError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            if time.monotonic() > end:
                return
            time.sleep(POLL_S / 4)


@contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """Fill the file system of this directory to its last byte."""
    ballast = directory / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (BLOCK_BYTES, 512):
                fill(lambda size=size: file.write(bytes(size)))  # type: ignore[misc] # bound at once
            yield
    finally:
        ballast.unlink(missing_ok=True)


def fill(write: Callable[[], object]) -> None:
    while True:
        try:
            write()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return
