"""How long to go on trying."""

from __future__ import annotations

import email.utils
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eckart.errors import EckartError

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


class Patience:
    """Pauses between tries, up to a limit; whatever gets through renews it."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.renew()

    def renew(self) -> None:
        self._pause_s = FIRST_PAUSE_S
        self._ends_at = time.monotonic() + self._limit_s

    def pause(self, error: EckartError, *, asked_s: float | None = None) -> None:
        """Sleep for as long as the service asked, or ever longer; raise the error when patience ends."""
        pause_s = self._pause_s if asked_s is None else asked_s
        if time.monotonic() + pause_s > self._ends_at:
            raise error
        time.sleep(pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def retry_after_s(field: str | None) -> float | None:
    """Read a Retry-After field, seconds or a date; None where it says neither."""
    if field is None:
        return None
    if field.strip().isascii() and field.strip().isdigit():
        return float(field)
    try:
        at = email.utils.parsedate_to_datetime(field)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
