"""Keep a table of child processes running, and end them in order."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.child import Child, ChildSpec
from service.lifeline import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import FrameType

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
