"""The file of a resumable upload: written by several requests, and hashed on the way where possible."""

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from state.files import AtomicFile

if TYPE_CHECKING:
    from hashlib import _Hash

MOST_HASHES = 10_000
READ_BYTES = 4 << 20


class RunningHashes:
    """The SHA-256 of what has arrived of each upload, in this process; no other can go on with one.

    Where it is missing, as after a restart, the file is read again, once, when its last byte is in.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[int, _Hash]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, upload_id: str, at_most: int) -> "tuple[int, _Hash]":
        """Return how many bytes are hashed, not more than these, and their hash."""
        with self._lock:
            nbytes, sha256 = self._known.get(upload_id, (0, hashlib.sha256()))
        return (nbytes, sha256.copy()) if nbytes <= at_most else (0, hashlib.sha256())

    def put(self, upload_id: str, nbytes: int, sha256: "_Hash") -> None:
        with self._lock:
            self._known[upload_id] = nbytes, sha256
            self._known.move_to_end(upload_id)
            if len(self._known) > MOST_HASHES:
                self._known.popitem(last=False)

    def forget(self, upload_id: str) -> None:
        with self._lock:
            self._known.pop(upload_id, None)


class PartialFile(AtomicFile):
    """A temporary file that stays when a block ends, and is written on from an offset.

    `hashed` are the first bytes, as many as `RunningHashes` knows. What lies beyond the offset, since a
    process was killed or had reserved space, is written over.
    """

    def __init__(
        self,
        path: Path,
        part: Path,
        *,
        offset: int,
        expected_bytes: int,
        mode: int,
        hashed: "tuple[int, _Hash]",
        hash_at_once: bool,
    ) -> None:
        # A process that was killed may have made it read-only, to publish it.
        part.chmod(0o600)
        self._begin(path, part, os.open(part, os.O_RDWR), durable=True, mode=mode)
        self._expected_bytes = expected_bytes
        self.hashed_bytes, self._sha256 = hashed
        self._hash_at_once = hash_at_once
        self.move_to(offset)

    def move_to(self, offset: int) -> None:
        """Write on from here; no more than what comes before it may be hashed."""
        self.size_bytes = self._flushed_bytes = self._reserved_bytes = offset

    def sync(self) -> None:
        """Force what was written to the disk."""
        os.fdatasync(self._descriptor)

    def catch_up(self) -> None:
        """Hash what was written without being hashed, which takes another pass over it."""
        while self.hashed_bytes < self.size_bytes:
            wanted = min(READ_BYTES, self.size_bytes - self.hashed_bytes)
            block = os.pread(self._descriptor, wanted, self.hashed_bytes)
            if not block:
                raise OSError(f"{self.part} is shorter than what was written")
            self._sha256.update(block)
            self.hashed_bytes += len(block)

    @property
    def hashed(self) -> "tuple[int, _Hash]":
        return self.hashed_bytes, self._sha256

    def abort(self) -> None:
        """Close the file, which stays, without the space that was reserved."""
        if self._open:
            if not self._sealed:
                os.ftruncate(self._descriptor, self.size_bytes)
            self._close()

    def _hash(self, view: memoryview) -> None:
        if self._hash_at_once and self.hashed_bytes == self.size_bytes:
            super()._hash(view)
            self.hashed_bytes += len(view)
