"""A file that becomes visible when it is complete, and not before."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from schemas.checkpoint import FileInfo

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_BUFFER_BYTES = 1 << 20


class PartFile:
    """
    Writes ``<path>.part`` and renames it to `path` when its block ends well.

    A block that raises publishes nothing and leaves no part file. What a killed process left is taken away.
    Where two processes write the same path, the later one wins and the earlier one fails.

    Parameters
    ----------
    path : Path
        Where the file shall appear, in place of what is there.
    durable : bool
        Whether the file must be on the disk before it is visible, so that it survives a loss of power.

    Attributes
    ----------
    size_bytes : int
        The bytes written so far.

    Raises
    ------
    FileExistsError
        When the block begins or ends, if another process began to write the same path meanwhile.
    OSError
        When the block begins or ends and by `write`, if the file cannot be opened, written, forced to the
        disk or renamed.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self.size_bytes = 0
        self._durable = durable
        self._part = path.with_name(f"{path.name}.part")
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        self._part.unlink(missing_ok=True)
        self._file = self._part.open("xb", buffering=_BUFFER_BYTES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        published = False
        try:
            if error is None:
                self._publish()
                published = True
        finally:
            if not published and self._is_ours():
                self._part.unlink()
            # What a full disk kept in the buffer cannot be written by closing either.
            with suppress(OSError):
                self._file.close()

    def write(self, piece: bytes | memoryview) -> None:
        """
        Append bytes, counting and hashing them on the way.

        Parameters
        ----------
        piece : bytes or memoryview of bytes
            Written or buffered when the call returns, so its memory may be used again.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        self._file.write(piece)
        self._hash.update(piece)
        self.size_bytes += len(piece)

    def written(self) -> FileInfo:
        """Return what was published; of meaning once the block has ended."""
        return FileInfo(name=self.path.name, size_bytes=self.size_bytes, sha256=self._hash.hexdigest())

    def _publish(self) -> None:
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())
        if not self._is_ours():
            raise FileExistsError(f"Another process is writing {self.path}.")
        self._part.replace(self.path)
        if self._durable:
            _sync_directory(self.path.parent)

    def _is_ours(self) -> bool:
        """Whether the part file's name still means the file that this block opened."""
        try:
            named = self._part.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._file.fileno()))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
