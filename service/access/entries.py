"""A setting of several entries, or a file of them, which is read again when it changes."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger("eckart.service")


class Entries(Generic[T]):
    """What is made of the entries, separated by commas; or of those in the file after `@`, one a line."""

    def __init__(
        self,
        setting: str,
        parse: Callable[[Iterator[str]], T],
        *,
        what: str,
        changed: Callable[[T], None] = lambda _: None,
    ) -> None:
        """Parse the entries, or raise a ValueError; `what` they are, for the log.

        `changed` is called with what is made of a file that was read again.
        """
        self._parse = parse
        self._changed = changed
        self._what = what
        self._path = Path(setting[1:]) if setting.startswith("@") else None
        self._seen = self._state()
        try:
            self._value = parse(self._lines() if self._path else filter(str.strip, setting.split(",")))
        except OSError as error:
            raise ValueError(f"the file that it names cannot be read: {error.strerror}") from None

    def now(self) -> T:
        """Return what the file holds now; one that cannot be taken changes nothing."""
        state = self._state()
        if state != self._seen:
            self._seen = state
            self._read_again()
        return self._value

    def _read_again(self) -> None:
        try:
            self._value = self._parse(self._lines())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log.error("%s is not taken, so the %s stay as they were: %s", self._path, self._what, reason)  # noqa: TRY400
        else:
            log.info("%s was read again", self._path)
            self._changed(self._value)

    def _state(self) -> tuple[int, ...] | None:
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)  # noqa: PTH116 - at every request
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _lines(self) -> Iterator[str]:
        assert self._path is not None
        lines = self._path.read_text(encoding="ascii", errors="replace").splitlines()
        return (line for line in map(str.strip, lines) if line and not line.startswith("#"))
