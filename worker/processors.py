"""The processors that this process may use: what its affinity and its control group allow."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
ROOTS = ("", "cpu", "cpu,cpuacct")


def processors(group: Path = CGROUP) -> int:
    """Return the least of the affinity and the quota of the control group, rounded up; at least 1."""
    affinity = len(os.sched_getaffinity(0))
    return max(1, min(affinity, math.ceil(quota(group) or affinity)))


def quota(group: Path) -> float | None:
    """Return how many processors' time a group may use, by cgroup v2 or v1; None: there is no limit."""
    v1 = (group / name for name in ROOTS)
    texts = (f"{_read(root / 'cpu.cfs_quota_us')} {_read(root / 'cpu.cfs_period_us')}" for root in v1)
    for text in (_read(group / "cpu.max"), *texts):
        try:
            limit, period = map(float, text.split())
        except ValueError:
            continue  # There is no such group, or its limit is "max".
        if limit > 0 and period > 0:
            return limit / period
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
