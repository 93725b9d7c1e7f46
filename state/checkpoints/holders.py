"""Which checkpoints hold a file, by its digest, so that deleting one reads the manifest of no other.

Only cached decompositions depend on it: where an entry is missing they are computed again, and where there is
one too many they stay until the next reconciliation, which corrects both.
"""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

from state.cache.key import OWNER_SEPARATOR, owned
from state.data_dir import DataDir


class Holders:
    """An empty file for each checkpoint of an owner that holds a file, in a folder of the file's digest."""

    def __init__(self, paths: DataDir) -> None:
        self._paths = paths

    def add(self, sha256: str, checkpoint_id: str) -> None:
        """Note that a checkpoint holds a file."""
        folder = self._folder(sha256)
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the last holder was removed at this moment
                (folder / checkpoint_id).touch()
                return

    def remove(self, sha256: str, checkpoint_id: str) -> bool:
        """Note that a checkpoint holds a file no more; return whether none holds it now."""
        folder = self._folder(sha256)
        (folder / checkpoint_id).unlink(missing_ok=True)
        try:
            folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def correct(self, known: AbstractSet[tuple[str, str]]) -> None:
        """Make the entries those of these digests and checkpoints, which the manifests name."""
        noted = set(self._noted())
        for sha256, checkpoint_id in known - noted:
            self.add(sha256, checkpoint_id)
        for sha256, checkpoint_id in noted - known:
            self.remove(sha256, checkpoint_id)

    def _noted(self) -> Iterator[tuple[str, str]]:
        before = owned(self._paths.owner, "")
        for entry in self._paths.holders.glob("*/*"):
            sha256 = entry.parent.name.removeprefix(before)
            if entry.parent.name == before + sha256 and OWNER_SEPARATOR not in sha256:
                yield sha256, entry.name

    def _folder(self, sha256: str) -> Path:
        return self._paths.holders / owned(self._paths.owner, sha256)
