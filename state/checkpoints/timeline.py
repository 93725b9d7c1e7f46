"""When each checkpoint of an owner was stored into last, in order, so that a page of some looks at no others.

For each checkpoint there is an empty file, named by the time of its manifest and by its id, in folders by the
leading digits of the time. The manifests are the truth: what a killed process leaves wrong here is corrected
by a page that comes upon it (`listing`), and else by the next reconciliation.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from schemas.format.names import CHECKPOINT_ID
from state.data_dir import DataDir

Entry = tuple[int, str]
"""The time in microseconds since 1970, and the id of a checkpoint."""

DIGITS = 16
LATEST_US = int("9" * DIGITS)
# Folders of a day, of 100 s and of a tenth of a second: none holds many, however many checkpoints there are.
CUTS = ((0, 5), (5, 8), (8, 11))
NAME = re.compile(rf"([0-9]{{{DIGITS}}})-(.*)")
# There once the timeline was compared with the disk: before that it lacks what an earlier release stored.
COMPLETE = ".complete"


class Timeline:
    """The times of an owner's checkpoints."""

    def __init__(self, paths: DataDir) -> None:
        self._paths = paths
        self._root = paths.timeline

    @property
    def complete(self) -> bool:
        """Whether it was ever compared with the disk."""
        return (self._root / COMPLETE).exists()

    def note(self, checkpoint_id: str, before_us: int | None) -> None:
        """Enter a checkpoint that was stored into now, and at `before_us` the time before."""
        time_us = stored_us(self._paths, checkpoint_id)
        if time_us is not None:
            self.add(time_us, checkpoint_id)
        if before_us not in {None, time_us}:
            assert before_us is not None
            self.remove(before_us, checkpoint_id)

    def add(self, time_us: int, checkpoint_id: str) -> None:
        path = self._path(time_us, checkpoint_id)
        while True:
            with suppress(FileNotFoundError):  # whoever removed the last of a folder has removed the folder
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                return

    def remove(self, time_us: int, checkpoint_id: str) -> None:
        path = self._path(time_us, checkpoint_id)
        path.unlink(missing_ok=True)
        with suppress(OSError):  # others are left there
            for folder in list(path.parents)[: len(CUTS)]:
                folder.rmdir()

    def latest_first(self, first: Entry | None = None) -> Iterator[Entry]:
        """Yield the entries in falling order, from `first` on."""
        for name in self._names(str(self._root), 0, _name(*first) if first else None):
            found = NAME.fullmatch(name)
            if found is not None and CHECKPOINT_ID.fullmatch(found[2]):
                yield int(found[1]), found[2]

    def correct(self) -> int:
        """Make the entries those of the manifests; return of how many checkpoints they were wrong.

        A timeline that was not complete was not wrong.
        """
        was_complete = self.complete
        noted = set(self.latest_first())
        known = set(_stored(self._paths))
        for entry in known - noted:
            self.add(*entry)
        # Some may have been entered since the manifests were looked at.
        extra = [
            (time_us, name) for time_us, name in noted - known if stored_us(self._paths, name) != time_us
        ]
        for entry in extra:
            self.remove(*entry)
        if not was_complete:
            self._root.mkdir(parents=True, exist_ok=True)
            (self._root / COMPLETE).touch()
            return 0
        return len({name for _, name in (*(known - noted), *extra)})

    def _names(self, folder: str, depth: int, first: str | None) -> Iterator[str]:
        """Yield the names of all entries below a folder that are not above `first`."""
        if depth == len(CUTS):
            yield from (name for name in _falling(folder) if first is None or name <= first)
            return
        own = None if first is None else first[slice(*CUTS[depth])]
        for name in _falling(folder):
            if name.isdigit() and (own is None or name <= own):
                yield from self._names(f"{folder}/{name}", depth + 1, first if name == own else None)

    def _path(self, time_us: int, checkpoint_id: str) -> Path:
        name = _name(time_us, checkpoint_id)
        return self._root.joinpath(*(name[slice(*cut)] for cut in CUTS), name)


def stored_us(paths: DataDir, checkpoint_id: str) -> int | None:
    """Return when a checkpoint was stored into last, which its manifest tells; None if it is not there."""
    try:
        time_ns = os.stat(paths.manifest(checkpoint_id)).st_mtime_ns  # noqa: PTH116 - in a loop
    except (FileNotFoundError, NotADirectoryError):
        return None
    return min(max(0, time_ns // 1000), LATEST_US)


def _stored(paths: DataDir) -> Iterator[Entry]:
    with suppress(FileNotFoundError), os.scandir(paths.checkpoints) as entries:
        for entry in entries:
            time_us = stored_us(paths, entry.name) if CHECKPOINT_ID.fullmatch(entry.name) else None
            if time_us is not None:
                yield time_us, entry.name


def _name(time_us: int, checkpoint_id: str) -> str:
    return f"{time_us:0{DIGITS}d}-{checkpoint_id}"


def _falling(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder), reverse=True)  # noqa: PTH208 - in a loop
    except (FileNotFoundError, NotADirectoryError):
        return []
