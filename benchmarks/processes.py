"""The memory of processes, sampled while they run."""

import re
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Self

PERIOD_S = 0.02
KIB = re.compile(r"^(RssAnon|VmHWM|RssFile):\s+(\d+) kB$", re.MULTILINE)


def memory(pid: int) -> dict[str, int]:
    """Read a process's anonymous, peak resident and file-backed bytes; empty if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: int(kib) << 10 for name, kib in KIB.findall(status)}


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


class Watch:
    """Samples the summed anonymous memory of some processes every 20 ms in a `with` block.

    Attributes: `first_bytes` and `peak_bytes` of the sum; `last` has the last values of each process.
    """

    def __init__(self, pids: Callable[[], Collection[int]]) -> None:
        self.first_bytes = self.peak_bytes = self.samples = 0
        self.last: dict[int, dict[str, int]] = {}
        self._pids = pids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch")

    def __enter__(self) -> Self:
        self.first_bytes = self.sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def growth_bytes(self) -> int:
        return self.peak_bytes - self.first_bytes

    def _watch(self) -> None:
        while not self._ended.wait(PERIOD_S):
            self.sample()

    def sample(self) -> int:
        now = {pid: facts for pid in self._pids() if (facts := memory(pid))}
        total = sum(facts.get("RssAnon", 0) for facts in now.values())
        self.last |= now
        self.samples += 1
        self.peak_bytes = max(self.peak_bytes, total)
        return total
