"""When each step of the reaper last had a good turn: one that hangs must be seen from outside."""

import time
from collections.abc import Mapping

# The step that finds lost jobs: without it the service is not ready.
SWEEP = "sweep jobs"
# A step that had no good turn for so many intervals is late.
LATE_AFTER = 12


class Turns:
    """The ages of the last good turns. Written on the event loop, read by requests in other threads."""

    def __init__(self, *, every_s: float) -> None:
        self.limit_s = LATE_AFTER * every_s
        self._ended: dict[str, float] = {}

    def begin(self, what: str) -> None:
        """Count the age of a step's last good turn from now on."""
        self._ended[what] = time.monotonic()

    def end(self, what: str) -> None:
        """Note a good turn."""
        self._ended[what] = time.monotonic()

    def ages_s(self) -> Mapping[str, float]:
        """Return the seconds since each step's last good turn, or since the start."""
        now = time.monotonic()
        return {what: now - ended for what, ended in self._ended.copy().items()}

    def is_late(self, what: str) -> bool:
        """Whether a step had no good turn for too long; a reaper that has not begun is not late."""
        return self.ages_s().get(what, 0.0) > self.limit_s
