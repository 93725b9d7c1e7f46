"""Keeping a folder of folders of files within bounds: what was used least recently goes first."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Of what the files and the free disk are together, the files never take more than one part in so many.
SHARE = 2


@dataclass(frozen=True, slots=True, order=True)
class _Kept:
    used_ns: int
    path: str
    size_bytes: int


def make_room(root: Path, nbytes: int, *, limit_bytes: int | None, spare_bytes: int = 0) -> bool:
    """Remove files until so many bytes more may lie there, and return whether they may at all.

    `spare_bytes` of the disk are not counted as free: they are for something else that is still to come.
    The caller holds a lock, so that two do not take the same room. A file that is open stays readable.
    """
    if limit_bytes is None:
        return True
    kept = sorted(_files(root))
    used_bytes = sum(file.size_bytes for file in kept)
    most = min(limit_bytes, (used_bytes + shutil.disk_usage(root).free - spare_bytes) // SHARE)
    if nbytes > most:
        return False
    _evict(kept, used_bytes + nbytes - most)
    return True


def give_back(root: Path, nbytes: int) -> None:
    """Remove files until so many bytes more are free; none at all where that cannot be."""
    kept = sorted(_files(root))
    if sum(file.size_bytes for file in kept) >= nbytes:
        _evict(kept, nbytes)


def _evict(kept: Sequence[_Kept], nbytes: int) -> None:
    for file in kept:
        if nbytes <= 0:
            break
        with suppress(FileNotFoundError):
            os.unlink(file.path)  # noqa: PTH108 - as scandir gave it
        with suppress(OSError):
            os.rmdir(os.path.dirname(file.path))  # noqa: PTH106, PTH120 - unless others are left there
        nbytes -= file.size_bytes


def _files(root: Path) -> Iterator[_Kept]:
    for folder in _entries(root):
        if not folder.is_dir(follow_symlinks=False):
            continue
        for entry in _entries(folder.path):
            # Who reads marks as used at any time, and who deletes a checkpoint asks nobody.
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield _Kept(status.st_mtime_ns, entry.path, status.st_size)


def _entries(path: Path | str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
