"""Progress: the callback, and a line for people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

LINE_COLUMNS = 79
LIVE_EVERY_S = 0.1
SPARSE_EVERY_S = 10.0


class ProgressCallback(Protocol):
    """A callback for long operations."""

    def __call__(self, done: int, total: int, what: str, /) -> None:
        """Take the bytes or layers done, their total (0: not yet known), and the current step."""


def silent(_done: int, _total: int, _what: str, /) -> None:
    """Ignore progress."""


class ProgressLine:
    """Progress for people: one line rewritten in place on a terminal, occasional lines elsewhere."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._live = stream.isatty()
        self._every_s = LIVE_EVERY_S if self._live else SPARSE_EVERY_S
        self._next_at = clock()
        self._verb = ""
        self._line_open = False

    def __call__(self, done: int, total: int, what: str, /) -> None:
        verb = what.partition(" ")[0]
        if verb == self._verb and self._clock() < self._next_at and not (self._live and done == total):
            return
        self._verb, self._next_at = verb, self._clock() + self._every_s
        line = f"{done / total:4.0%} {what}" if total else f"     {what}"
        if self._live:
            self._stream.write(f"\r{line[:LINE_COLUMNS]:<{LINE_COLUMNS}}")
            self._stream.flush()
            self._line_open = True
        else:
            self.note(line)

    def note(self, line: str) -> None:
        """Write a line that stays."""
        self.close()
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """End the line that is being rewritten, so that what follows starts on its own."""
        if self._line_open:
            self._stream.write("\n")
            self._line_open = False
