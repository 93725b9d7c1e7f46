"""Cleaning up the checkpoints of all owners, as the reaper does it."""

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from schemas.format.names import CHECKPOINT_ID
from state.cache.key import owned
from state.cache.store import DecompositionCache
from state.checkpoints.consistency import weight_files
from state.checkpoints.holders import Holders
from state.checkpoints.manifest import read_manifest
from state.checkpoints.parsed_header import kept_path
from state.checkpoints.timeline import Timeline
from state.data_dir import DataDir
from state.errors import FilesLocked
from state.files import PART_ENDING, is_of_this_kernel, is_orphaned, locked, purge

# What `new_checkpoint_id` returns.
ONE_SHOT_ID = re.compile(r"C[0-9a-f]{32}")
# A temporary file is locked within this time after it was opened.
JUST_BEGUN_S = 5.0


class CheckpointUpkeep:
    """The reaper's half of the store: each call but one is for all owners."""

    def __init__(self, data_dir: Path, owner: str = "") -> None:
        self._paths = DataDir(data_dir, owner)
        self._cache = DecompositionCache.shared(data_dir, limit_bytes=None, owner=owner)
        self._holders = Holders(self._paths)
        self._timeline = Timeline(self._paths)

    @property
    def owner(self) -> str:
        return self._paths.owner

    def remove_orphans(self) -> None:
        """Remove cached decompositions of files that no checkpoint holds any more."""
        held: set[str] = set()
        for paths in self._paths.of_all_owners():
            known = set(_held(paths))
            Holders(paths).correct(known)
            held |= {owned(paths.owner, sha256) for sha256, _ in known}
        self._cache.remove_orphans(lambda: held)

    def correct_lists(self) -> int:
        """Make all owners' lists agree with the disk; return of how many checkpoints they were wrong."""
        return sum(Timeline(paths).correct() for paths in self._paths.of_all_owners())

    def remove_uncounted(self, older_than_s: float) -> int:
        """Remove what lies in folders of checkpoints and is in no manifest; return the number of files.

        A process that is killed between the two steps of publishing leaves such a file.
        """
        limit, removed = time.time() - older_than_s, 0
        for paths in self._paths.of_all_owners():
            for folder in paths.checkpoints.glob("*"):
                if CHECKPOINT_ID.fullmatch(folder.name) and any(_uncounted(paths, folder, limit)):
                    with suppress(FilesLocked), _lock_of(paths, folder.name, wait_s=0):
                        removed += _remove_uncounted(paths, folder, limit)
        return removed

    def old_one_shots(self, older_than_s: float) -> list[str]:
        """Return the ids of the owner's checkpoints that came with a job and have not changed for so long."""
        limit = time.time() - older_than_s
        return [
            folder.name
            for folder in self._paths.checkpoints.glob("C*")
            if ONE_SHOT_ID.fullmatch(folder.name) and _is_older(folder, limit)
        ]

    def owners(self) -> list[str]:
        """Return all owners that there are."""
        return [paths.owner for paths in self._paths.of_all_owners()]

    def sweep_parts(self, older_than_s: float) -> int:
        """Remove unfinished uploads and deletions of killed processes; return how many there were."""
        limit = time.time() - older_than_s
        parts = list(self._paths.parts.glob("*" + PART_ENDING))
        trash = [path for path in self._paths.trash.glob("*") if _is_older(path, limit)]
        for path in trash:
            purge(path)
        return sum(_remove_orphan(path, limit) for path in parts) + len(trash)

    def _lock(self, checkpoint_id: str) -> AbstractContextManager[None]:
        return _lock_of(self._paths, checkpoint_id)


def _lock_of(
    paths: DataDir, checkpoint_id: str, *, wait_s: float | None = None
) -> AbstractContextManager[None]:
    return locked(paths.lock("checkpoint", paths.key(checkpoint_id)), wait_s=wait_s)


def _remove_orphan(part: Path, limit: float) -> bool:
    """Remove an orphaned temporary file; what is no file, or cannot be removed, stays.

    It lies there until `limit`, since other machines' locks may be unknown here; one of this kernel does not.
    """
    if is_of_this_kernel(part):
        limit = max(limit, time.time() - JUST_BEGUN_S)
    try:
        if not (part.is_file() and _is_older(part, limit) and is_orphaned(part)):
            return False
        part.unlink()
    except OSError:
        return False
    return True


def _held(paths: DataDir) -> Iterator[tuple[str, str]]:
    """Yield the digest of each weight file of an owner, and the checkpoint that holds it."""
    for folder in paths.checkpoints.glob("*"):
        files = read_manifest(paths, folder.name)
        yield from ((files[name].sha256, folder.name) for name in weight_files(files))


def _uncounted(paths: DataDir, folder: Path, limit: float) -> Iterator[Path]:
    """Yield old files that the manifest does not name, and the headers that are kept of no such file."""
    files = read_manifest(paths, folder.name)
    counted = {folder / name for name in files} | {kept_path(folder, name) for name in files}
    counted.add(paths.manifest(folder.name))
    yield from (path for path in folder.iterdir() if path not in counted and _is_older(path, limit))


def _remove_uncounted(paths: DataDir, folder: Path, limit: float) -> int:
    """Remove them, and the folder if nothing is left; the caller holds the checkpoint's lock."""
    removed = 0
    for path in _uncounted(paths, folder, limit):
        with suppress(IsADirectoryError, FileNotFoundError):
            path.unlink()
            removed += 1
    with suppress(OSError):
        folder.rmdir()
    return removed


def _is_older(path: Path, limit: float) -> bool:
    try:
        return path.stat().st_mtime < limit
    except OSError:
        return False
