"""What was parsed of the files that were read last: each poll of a job asks for its job.json."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_FILES = 256
# Larger files are read each time, so that few large specs do not fill the memory.
MOST_BYTES = 16_384


class ReadLast(Generic[T]):
    """Keeps what was parsed, until the file is another one: each new version has another inode or time."""

    def __init__(self, parse: Callable[[str], T]) -> None:
        self._parse = parse
        self._lock = threading.Lock()
        self._found: OrderedDict[str, tuple[tuple[int, int, int], T]] = OrderedDict()

    def get(self, path: str) -> T:
        """Return what the file holds, which nobody may change; what `parse` raises is raised."""
        status = os.stat(path)  # noqa: PTH116 - at every poll
        key = (status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            found = self._found.get(path)
            if found is not None and found[0] == key:
                self._found.move_to_end(path)
                return found[1]
        parsed = self._parse(path)
        if status.st_size <= MOST_BYTES:
            with self._lock:
                self._found[path] = key, parsed
                self._found.move_to_end(path)
                if len(self._found) > MOST_FILES:
                    self._found.popitem(last=False)
        return parsed
