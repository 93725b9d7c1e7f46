"""The log of a tree, read as it grows: when each job last went on."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from pathlib import Path

READ_S = 0.02
WORK = re.compile(rb"job (J\w+)(?:: attempt \d+ begins|: layer | succeeded)")


class WorkLog:
    """Notes the time of each line in which a worker tells of its work."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, float] = {}
        self._last = 0.0

    def run(self, stop: threading.Event) -> None:
        rest = b""
        with self._path.open("rb") as log:
            while not stop.is_set():
                *lines, rest = (rest + log.read()).split(b"\n")
                now = time.monotonic()
                for line in lines:
                    if found := WORK.search(line):
                        self._last = self._seen[found[1].decode()] = now
                time.sleep(READ_S)

    def last(self, job_id: str | None = None) -> float:
        """Return when this job, or any, was last told of; 0 if never."""
        return self._last if job_id is None else self._seen.get(job_id, 0.0)
