"""A file on this machine that is sent to the service."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eckart.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from eckart.progress import ProgressCallback

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to send, and where it begins in the total."""

    path: Path
    size_bytes: int
    sha256: str
    offset_bytes: int
    total_bytes: int

    def blocks(self, begin: int, end: int, progress: ProgressCallback) -> Iterator[bytes]:
        """Yield the bytes from `begin` to `end`, and tell how far they go."""
        with self.path.open("rb") as stream:
            at = begin
            if os.fstat(stream.fileno()).st_size == self.size_bytes:
                stream.seek(begin)
                while block := stream.read(min(BLOCK_BYTES, end - at)):
                    at += len(block)
                    yield block
                    progress(self.offset_bytes + at, self.total_bytes, f"upload {self.path.name}")
        if at != end:
            raise InputError(f"{self.path} changed while it was being sent")
