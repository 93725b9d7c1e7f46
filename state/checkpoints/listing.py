"""Pages of an owner's checkpoints, the one that was stored into last first."""

from schemas.checkpoint import CheckpointList, ListedCheckpoint
from state.checkpoints.consistency import stored_is_complete
from state.checkpoints.manifest import read_manifest
from state.checkpoints.timeline import Entry, Timeline, stored_us
from state.data_dir import DataDir
from state.times import rfc3339

# An entry may be out of date for the moment of an upload; one that stays so shows that many are.
LOOKS = 2


def list_checkpoints(paths: DataDir, *, limit: int, cursor: str | None = None) -> CheckpointList:
    """Return a page; `cursor` is the `next_cursor` of the page before."""
    first = None
    if cursor is not None:
        # The microsecond of the manifest and the id, since several may be of one time.
        time_us, _, name = cursor.partition("-")
        first = int(time_us), name
    timeline = Timeline(paths)
    if not timeline.complete:
        timeline.correct()
    for _ in range(LOOKS):
        page, moved = _page(paths, timeline, limit, first)
        if not moved:
            return page
    timeline.correct()
    return _page(paths, timeline, limit, first)[0]


def _page(paths: DataDir, timeline: Timeline, limit: int, first: Entry | None) -> tuple[CheckpointList, bool]:
    """Return a page, and whether an entry was of another time than its manifest, and is corrected now."""
    shown: list[ListedCheckpoint] = []
    after, moved = None, False
    for time_us, name in timeline.latest_first(first):
        found_us = stored_us(paths, name)
        if found_us != time_us:
            if found_us is not None:
                timeline.add(found_us, name)
                moved = True
            timeline.remove(time_us, name)
        elif len(shown) == limit:
            after = f"{time_us}-{name}"
            break
        elif (listed := _listed(paths, time_us, name)) is not None:
            shown.append(listed)
    return CheckpointList(checkpoints=tuple(shown), next_cursor=after), moved


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
