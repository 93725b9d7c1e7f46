"""The peak of a process's memory."""

import re
from pathlib import Path


def peak_kib() -> int:
    """Return it for this process since it began to run its program.

    `ru_maxrss` begins with the peak of the process that started it, here pytest, and so may never grow.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])
