"""Eviction from a folder of folders of files, the least recently used first.

The caller holds a lock, so that two do not take the same room; a file that is open stays readable.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ENDING = ".safetensors"
# Of the free disk and the cache together, the cache takes at most one part in so many.
DISK_SHARE = 2
# The bytes in the cache, so that a decomposition is stored without a look at all others. It may be too large,
# since deletions are not counted, and too small only by what was being written at the last look at all.
USED_NAME = ".used"
USED_DIGITS = 20
# From a full cache, one part in so many is evicted beyond what is needed: the next then need no look either.
SLACK_SHARE = 16


@dataclass(frozen=True, slots=True, order=True)
class _CacheEntry:
    used_ns: int
    path: str
    size_bytes: int


def make_room(
    root: Path, nbytes: int, *, limit_bytes: int | None, spare_bytes: int = 0, opened_ns: int = 0
) -> bool:
    """Evict files until so many bytes more may be stored, and return whether they may be stored at all.

    `spare_bytes` of the disk do not count as free: they are reserved for files that are still to come. Files
    that were used since `opened_ns` are evicted only if they must be.
    """
    if limit_bytes is None:
        return True
    free_bytes = shutil.disk_usage(root).free - spare_bytes
    used_bytes = _recorded_bytes(root)
    if used_bytes is None or used_bytes + nbytes > _most(used_bytes, free_bytes, limit_bytes):
        entries = sorted(_files(root))
        used_bytes = sum(file.size_bytes for file in entries)
        most = _most(used_bytes, free_bytes, limit_bytes)
        if nbytes > most:
            return False
        needed = used_bytes + nbytes - most
        used_bytes -= _evict(
            entries, needed, slack=most // SLACK_SHARE if needed > 0 else 0, since_ns=opened_ns
        )
    _record_bytes(root, used_bytes + nbytes)
    return True


def _most(used_bytes: int, free_bytes: int, limit_bytes: int) -> int:
    return min(limit_bytes, (used_bytes + free_bytes) // DISK_SHARE)


def _recorded_bytes(root: Path) -> int | None:
    with suppress(FileNotFoundError, ValueError):
        return int((root / USED_NAME).read_text())
    return None


def _record_bytes(root: Path, used_bytes: int) -> None:
    text = f"{used_bytes:0{USED_DIGITS}d}".encode()
    descriptor = os.open(root / USED_NAME, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        # In place: to empty the file first takes a millisecond on ext4, as long as all the rest.
        os.pwrite(descriptor, text, 0)
        if os.fstat(descriptor).st_size != len(text):
            os.ftruncate(descriptor, len(text))
    finally:
        os.close(descriptor)


def free_space(root: Path, nbytes: int) -> None:
    """Evict files of so many bytes; none at all where there are not so many."""
    entries = sorted(_files(root))
    if sum(file.size_bytes for file in entries) >= nbytes:
        _evict(entries, nbytes)


def _evict(entries: Sequence[_CacheEntry], nbytes: int, *, slack: int = 0, since_ns: int = 0) -> int:
    """Remove files of so many bytes, the oldest first, and return how many bytes it were.

    Of those that were not used since then, up to `slack` bytes more are removed.
    """
    evicted = 0
    for file in entries:
        is_old = file.used_ns < since_ns and evicted + file.size_bytes <= nbytes + slack
        if evicted >= nbytes and not is_old:
            break
        with suppress(FileNotFoundError):
            os.unlink(file.path)  # noqa: PTH108 - as scandir gave it
        with suppress(OSError):
            os.rmdir(os.path.dirname(file.path))  # noqa: PTH106, PTH120 - unless others are left there
        evicted += file.size_bytes
    return evicted


def _files(root: Path) -> Iterator[_CacheEntry]:
    for folder in entries_of(root):
        if not folder.is_dir(follow_symlinks=False):
            continue
        for entry in entries_of(folder.path):
            # Other processes may touch or delete entries at the same time.
            with suppress(FileNotFoundError):
                if entry.name.endswith(ENDING) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield _CacheEntry(status.st_mtime_ns, entry.path, status.st_size)


def entries_of(path: Path | str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
