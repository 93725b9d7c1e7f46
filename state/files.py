"""One at a time, across processes and across machines that share the volume."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from state.errors import NoSpace


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file; not twice in one thread, since the second would wait for the first for ever."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing alone would leave the lock with a child that was forked meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
PART_ENDING = ".part"
READ_ONLY = 0o444
FLUSH_BYTES = 16 << 20


@contextmanager
def disk_errors() -> Iterator[None]:
    """Tell a full disk as `NoSpace`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace from error
        raise


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory whose own name is durable."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_directory(path.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Put content in place of what is there: a reader sees all of the old or all of the new."""
    part = path.with_name(f".{path.name}{PART_ENDING}")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_directory(path.parent)


def move_to_trash(path: Path, trash: Path) -> Path | None:
    """Move a directory out of sight in one step; return where to empty it, None if it was not there."""
    make_directory(trash)
    place = trash / secrets.token_hex(8)
    try:
        path.rename(place)
    except FileNotFoundError:
        return None
    sync_directory(path.parent)
    return place


def purge(place: Path | None) -> None:
    """Remove what `banish` moved."""
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)


class Part:
    """A file under way: counted and hashed as it is written, locked so that no one takes it for left over."""

    def __init__(self, folder: Path, *, content_bytes: int | None) -> None:
        self.size_bytes = 0
        self._flushing_bytes = 0
        self._sha256 = hashlib.sha256()
        make_directory(folder)
        self.path = folder / (secrets.token_hex(16) + PART_ENDING)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._open = True
        if content_bytes:
            self._reserve(content_bytes)

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Append a block."""
        with disk_errors(), memoryview(block) as view:
            self._sha256.update(view)
            rest = view
            while rest:
                written = os.pwrite(self._descriptor, rest, self.size_bytes)
                self.size_bytes += written
                rest = rest[written:]
        self._flush_early()

    def digest(self) -> bytes:
        """Return the SHA-256 of what was written so far."""
        return self._sha256.digest()

    def seal(self) -> None:
        """Make the content durable and read-only."""
        with disk_errors():
            os.ftruncate(self._descriptor, self.size_bytes)
            os.fchmod(self._descriptor, READ_ONLY)
            os.fsync(self._descriptor)

    def publish(self, path: Path) -> None:
        """Give a sealed file its name."""
        self.path.rename(path)
        self._close()
        sync_directory(path.parent)

    def abort(self) -> None:
        """Leave nothing, unless it is published."""
        if self._open:
            self.path.unlink(missing_ok=True)
            self._close()

    def _reserve(self, content_bytes: int) -> None:
        """Learn now, not hours into an upload, that the disk is too small."""
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            with disk_errors():
                os.posix_fallocate(self._descriptor, 0, content_bytes)
        except BaseException:
            self.abort()
            raise

    def _flush_early(self) -> None:
        """Let the disk begin while more comes in, so that making it durable at the end is not a second wait.

        Linux starts to write dirty pages back, without waiting, when told that they are not needed.
        """
        length = self.size_bytes - self._flushing_bytes
        if length >= FLUSH_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, self._flushing_bytes, length, os.POSIX_FADV_DONTNEED)
            self._flushing_bytes = self.size_bytes

    def _close(self) -> None:
        self._open = False
        os.close(self._descriptor)


def is_orphaned(path: Path) -> bool:
    """Say whether a part file belongs to nobody any more."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
