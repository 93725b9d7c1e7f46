"""Files and directories: published atomically, locked between processes, deleted by way of the trash."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from schemas.checkpoint import FileInfo
from state.allocation import allocate
from state.errors import FilesLocked, OutOfSpace

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
PART_ENDING = ".part"
FLUSH_BYTES = 16 << 20
# Space is reserved ahead of what has arrived by as much as has arrived, but at least and at most by this. The
# least is what an announcement alone takes from all others.
LEAST_AHEAD_BYTES, MOST_AHEAD_BYTES = 1 << 20, 1 << 30
# A lock is held for milliseconds; whoever holds one for so long is stopped or waits for a dead disk.
LOCK_WAIT_S = 10.0
LOCK_POLL_S = (0.002, 0.05)


class AtomicFile:
    """A file that appears under its name only when it is complete.

    Bytes go to a temporary file on the same file system; `publish` renames it. A block that ends without
    `publish` leaves nothing. Of two processes that write the same `<name>.part`, the later one wins.

    Parameters
    ----------
    path : Path
        Where the file shall appear, replacing what is there.
    parts : Path, optional
        A shared folder for the temporary file, which gets a random name there and is locked until it is
        published, so that a sweep of the folder can tell it from an orphan (`is_orphaned`). Without it, the
        temporary file is `<path>.part`, and one that a killed process left there is replaced.
    durable : bool
        Whether the file must be on the disk before it is visible, so that it survives a loss of power.
    mode : int, optional
        The permissions of the published file; the umask's by default.
    reserve_bytes : int, optional
        The size that the file will have, so that a disk that is too small is noticed before the first byte.
        Space is allocated in steps ahead of what is written, so that none is given for an announcement alone.

    Attributes
    ----------
    size_bytes : int
        The bytes written so far.
    part : Path
        The temporary file.

    Raises
    ------
    FileExistsError
        By `publish`, if another process began to write the same path meanwhile.
    OSError
        By any method, if the file cannot be opened, written, forced to the disk or renamed.
    """

    _descriptor: int

    def __init__(
        self,
        path: Path,
        *,
        parts: Path | None = None,
        durable: bool = True,
        mode: int | None = None,
        reserve_bytes: int | None = None,
    ) -> None:
        if parts is None:
            part = path.with_name(path.name + PART_ENDING)
            part.unlink(missing_ok=True)
        else:
            make_directory(parts)
            part = parts / f"{_kernel()}-{secrets.token_hex(16)}{PART_ENDING}"
        # Narrow permissions are set from the start: nobody else may open the file before it is whole.
        permissions = 0o666 if mode is None else 0o600
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions)
        self._begin(path, part, descriptor, durable=durable, mode=mode)
        try:
            if parts is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if reserve_bytes and shutil.disk_usage(self.part.parent).free < reserve_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.part))  # noqa: TRY301
            self._expected_bytes = reserve_bytes or 0
            self._reserve(0)
        except BaseException:
            self.abort()
            raise

    def _begin(self, path: Path, part: Path, descriptor: int, *, durable: bool, mode: int | None) -> None:
        """Take an open temporary file, of which nothing is written yet."""
        self.path = path
        self.part = part
        self.size_bytes = 0
        self._flushed_bytes = 0
        self._expected_bytes = self._reserved_bytes = 0
        self._durable = durable
        self._mode = mode
        self._sha256 = hashlib.sha256()
        self._sealed = False
        self._descriptor = descriptor
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abort()

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Append bytes, counting and hashing them; the memory may be used again when the call returns."""
        if self.size_bytes + len(block) > self._reserved_bytes:
            self._reserve(len(block))
        with memoryview(block) as view:
            self._hash(view)
            rest = view
            while rest:
                written = os.pwrite(self._descriptor, rest, self.size_bytes)
                self.size_bytes += written
                rest = rest[written:]
        if self._durable:
            self._flush_early()

    def _hash(self, view: memoryview) -> None:
        """Hash what is about to be written."""
        self._sha256.update(view)

    @property
    def info(self) -> FileInfo:
        """The file's name, and the size and SHA-256 of what was written so far."""
        return FileInfo(
            name=self.path.name, size_bytes=self.size_bytes, sha256=self._sha256.copy().hexdigest()
        )

    def seal(self) -> None:
        """Give the file its final size and permissions, and make it durable; nothing is written afterwards.

        `publish` does this too. Call it first where the renaming is done under a lock: this may take long.
        """
        os.ftruncate(self._descriptor, self.size_bytes)
        if self._mode is not None:
            os.fchmod(self._descriptor, self._mode)
        if self._durable:
            os.fsync(self._descriptor)
        self._sealed = True

    def publish(self) -> FileInfo:
        """Rename the file to its path, and return its name, size and SHA-256."""
        if not self._sealed:
            self.seal()
        if not self._is_ours():
            raise FileExistsError(f"Another process is writing {self.path}.")
        self.part.rename(self.path)
        self._close()
        if self._durable:
            sync_directory(self.path.parent)
        return self.info

    def abort(self) -> None:
        """Remove the temporary file, if it is not published."""
        if self._open:
            try:
                if self._is_ours():
                    self.part.unlink()
            finally:
                self._close()

    def _is_ours(self) -> bool:
        """Whether the temporary name still means the file that this process opened."""
        try:
            named = self.part.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._descriptor))

    def _reserve(self, block_bytes: int) -> None:
        """Reserve what is expected next: the block that is about to be written, and one step beyond it."""
        arrived = self.size_bytes + block_bytes
        ahead = min(max(arrived, LEAST_AHEAD_BYTES), MOST_AHEAD_BYTES)
        end = min(self._expected_bytes, arrived + ahead)
        if end > self._reserved_bytes:
            allocate(self._descriptor, self._reserved_bytes, end - self._reserved_bytes)
            self._reserved_bytes = end

    def _flush_early(self) -> None:
        """Let the disk begin while more is written, so that making it durable at the end takes less time.

        Linux starts to write dirty pages back, without waiting, when told that they are not needed.
        """
        length = self.size_bytes - self._flushed_bytes
        if length >= FLUSH_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, self._flushed_bytes, length, os.POSIX_FADV_DONTNEED)
            self._flushed_bytes = self.size_bytes

    def _close(self) -> None:
        self._open = False
        os.close(self._descriptor)


def write_atomic(path: Path, content: bytes) -> FileInfo:
    """Replace a file durably: a reader sees all of the old content or all of the new."""
    with AtomicFile(path) as file:
        file.write(content)
        return file.publish()


@cache
def _kernel() -> str:
    """Return a name of the running kernel, which knows the locks of all its processes at once."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        boot = secrets.token_bytes(16)
    return hashlib.sha256(boot).hexdigest()[:8]


def is_of_this_kernel(part: Path) -> bool:
    """Whether a temporary file was made under this kernel, so that its lock tells if anyone writes it."""
    return part.name.startswith(_kernel() + "-")


def is_orphaned(path: Path) -> bool:
    """Whether a file is there, and the process that made it and kept it locked has died."""
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


@contextmanager
def disk_errors() -> Iterator[None]:
    """Translate a full disk into `OutOfSpace`."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OutOfSpace from error
        raise


@contextmanager
def locked(path: Path, *, wait_s: float | None = None) -> Iterator[None]:
    """Hold a lock file, across processes and machines that share the volume.

    Raises `FilesLocked` if another holds it for all of `wait_s`, or of `LOCK_WAIT_S`: a process that was
    stopped keeps its locks, and must not stop others with it.
    """
    # Not its parents: the folder of a deleted job must not come back.
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor, wait_s=LOCK_WAIT_S if wait_s is None else wait_s)
        try:
            yield
        finally:
            # Closing alone would leave the lock with a child that was forked meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    pause_s, longest_s = LOCK_POLL_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise FilesLocked from None
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, longest_s)
        else:
            return


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory, and its parents, whose names are durable."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def move_to_trash(path: Path, trash: Path) -> Path | None:
    """Move a directory away in one step; return where it lies now for `purge`, None if it was not there."""
    make_directory(trash)
    place = trash / secrets.token_hex(8)
    try:
        path.rename(place)
    except FileNotFoundError:
        return None
    sync_directory(path.parent)
    return place


@dataclass(frozen=True, slots=True)
class Freed:
    """What a deletion freed: so many bytes, which were there since this time, in seconds since 1970."""

    nbytes: int
    since_s: float


def purge(place: Path | None) -> None:
    """Delete what `move_to_trash` moved."""
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)
