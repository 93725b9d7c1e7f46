"""Which resumable uploads were begun and not ended: the next client goes on where one was killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eckart.local_file import LocalFile

ADDRESS = re.compile(r"/v1/uploads/[A-Za-z0-9._-]+")
# No service keeps an upload for so long that nothing comes for.
KEPT_S = 30 * 86_400


class UnfinishedUpload:
    """Where one file goes on: a note in the user's cache directory, which is done without if it fails.

    The same bytes for the same place are the same upload, wherever the file is.
    """

    def __init__(self, base_url: str, checkpoint: str, file: LocalFile) -> None:
        told = [base_url, checkpoint, file.path.name, file.size_bytes, file.sha256]
        folder = _folder()
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        self._path = folder / f"{digest[:40]}.txt" if folder else None

    @property
    def address(self) -> str | None:
        """The path of the upload at the service."""
        try:
            text = self._path.read_text("ascii") if self._path else ""
        except (OSError, ValueError):
            return None
        return text if ADDRESS.fullmatch(text) else None

    def keep(self, address: str) -> None:
        if self._path is None:
            return
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = self._path.with_suffix(f".{os.getpid()}.part")
            part.write_text(address, "ascii")
            part.replace(self._path)
            _remove_old(self._path.parent)

    def forget(self) -> None:
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)


def _folder() -> Path | None:
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # By the specification a relative path counts as none.
        base = Path(given) if given.startswith("/") else Path.home() / ".cache"
    except RuntimeError:  # this user has no home
        return None
    return base / "eckart" / "uploads"


def _remove_old(folder: Path) -> None:
    limit = time.time() - KEPT_S
    for path in folder.iterdir():
        with suppress(OSError):
            if path.stat().st_mtime < limit:
                path.unlink()
