"""Whether locks on the data directory hold between machines, as the mount says."""

import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
# On NFS: which locks a client keeps to itself. Ours are taken by `flock`.
LOCAL = re.compile(r"(?:^|,)local_lock=(?:all|flock)(?:,|$)")


def lock_warning(folder: Path, mounts: str | None = None) -> str | None:
    """Say that other machines do not see the locks on a folder, if it is mounted so."""
    if mounts is None:
        try:
            mounts = MOUNTS.read_text()
        except OSError:
            return None
    place = os.path.realpath(folder)
    best, kind, options = "", "", ""
    for line in mounts.splitlines():
        _, where, *rest = line.split(" ")
        where = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), where)
        if len(where) >= len(best) and (place + "/").startswith(where.rstrip("/") + "/"):
            best, (kind, options) = where, rest[:2]
    if not kind.startswith("nfs") or LOCAL.search(options) is None:
        return None
    return (
        f"The data directory is on {best}, an NFS mount with local locks ({options}): other machines do not "
        "see the locks that this one takes, and may lose each other's files. Mount it with local_lock=none."
    )
