"""A file on its way in: counted and hashed as it is written, seen under its name only when it is whole."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

BLOCK_BYTES = 1 << 20


class PartFile:
    """What has arrived so far; it stays on disk when the work breaks off, for a later try to go on with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._stream = path.open("r+b")
        self._begin()
        while block := self._stream.read(BLOCK_BYTES):
            self._count(block)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def write(self, block: bytes) -> None:
        self._stream.write(block)
        self._count(block)

    def restart(self) -> None:
        """Forget what has arrived."""
        self._stream.seek(0)
        self._stream.truncate()
        self._begin()

    def publish(self, target: Path) -> None:
        """Give the whole file its name."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self.path.replace(target)

    def _begin(self) -> None:
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()

    def _count(self, block: bytes) -> None:
        self.size_bytes += len(block)
        self._sha256.update(block)
