"""Pages of an owner's checkpoints, the one that was stored into last first.

Nothing keeps such a list: a page looks at the time of every manifest, and reads those that it shows.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress

from schemas.checkpoint import CheckpointList, ListedCheckpoint
from schemas.format.names import CHECKPOINT_ID
from state.checkpoints.store import read_manifest, stored_is_complete
from state.data_dir import DataDir
from state.errors import BadCursor
from state.jobs.records import rfc3339

# A cursor has the microsecond of the manifest and the id, since several may be of one time.
TIME_US = re.compile(r"[0-9]{1,16}")


def list_checkpoints(paths: DataDir, *, limit: int, cursor: str | None = None) -> CheckpointList:
    """Return a page; `cursor` is the `next_cursor` of the page before."""
    first = None
    if cursor is not None:
        time_us, _, name = cursor.partition("-")
        if TIME_US.fullmatch(time_us) is None or CHECKPOINT_ID.fullmatch(name) is None:
            raise BadCursor("checkpoints")
        first = int(time_us), name
    found = sorted((each for each in _stored(paths) if first is None or each <= first), reverse=True)
    shown = [listed for each in found[:limit] if (listed := _listed(paths, *each)) is not None]
    after = next((f"{at_us}-{following}" for at_us, following in found[limit : limit + 1]), None)
    return CheckpointList(checkpoints=tuple(shown), next_cursor=after)


def _stored(paths: DataDir) -> Iterator[tuple[int, str]]:
    """Yield the time in microseconds and the id of each checkpoint."""
    with suppress(FileNotFoundError), os.scandir(paths.checkpoints) as entries:
        for entry in entries:
            with suppress(OSError):
                status = os.stat(f"{entry.path}/{paths.manifest(entry.name).name}")  # noqa: PTH116 - in a loop
                yield status.st_mtime_ns // 1000, entry.name


def _listed(paths: DataDir, time_us: int, name: str) -> ListedCheckpoint | None:
    """Describe a checkpoint; None if it is gone by now."""
    files = read_manifest(paths, name)
    if not files:
        return None
    return ListedCheckpoint(
        id=name,
        stored_at=rfc3339(time_us),
        files=tuple(files.values()),
        complete=stored_is_complete(paths, name, files),
        bytes=sum(file.size_bytes for file in files.values()),
    )
