"""Stored checkpoints: files under a client's id, published once and never changed."""

import logging
import secrets
import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path

from schemas.checkpoint import CHECKPOINT_ID, FILE_NAME, CheckpointError, ShardIndex
from schemas.report import FileReport
from state.blobs import PART_ENDING, Part, banish, disk_errors, empty, left_over, make_directory
from state.decompositions import DecompositionStore
from state.errors import CheckpointNotFound, ContentConflict, TooLarge
from state.layout import Layout
from state.locks import locked
from state.manifest import read_manifest, write_manifest
from state.shelf import StoredCheckpoint, check_addition, read_shelf
from state.uploads import Upload

log = logging.getLogger("eckart.state")


def new_checkpoint_id() -> str:
    """Return an id that cannot be guessed, for files that come with a job."""
    return "C" + secrets.token_hex(16)


class CheckpointStore:
    """The checkpoints below the data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._layout = Layout(data_dir)
        self._decompositions = DecompositionStore.shared(data_dir, limit_bytes=None)

    def receive(
        self, checkpoint_id: str, name: str, *, content_bytes: int | None, limit_bytes: int
    ) -> Upload:
        """Begin a file; what can be refused by its name and length is refused here."""
        if CHECKPOINT_ID.fullmatch(checkpoint_id) is None or FILE_NAME.fullmatch(name) is None:
            raise CheckpointError(
                "bad-name",
                "Ids and file names are made of at most 128 letters, digits, dots, underscores and hyphens; "
                "a file's name ends in .safetensors or .safetensors.index.json.",
            )
        if content_bytes is not None and content_bytes > limit_bytes:
            raise TooLarge(limit_bytes)

        def publish(file: FileReport, index: ShardIndex | None, part: Part) -> bool:
            return self._publish(checkpoint_id, file, index, part)

        with disk_errors():
            part = Part(self._layout.parts, content_bytes=content_bytes)
        return Upload(name, part, publish, content_bytes=content_bytes, limit_bytes=limit_bytes)

    def get(self, checkpoint_id: str, *, only: Collection[str] | None = None) -> StoredCheckpoint:
        """Return a checkpoint, or the part of it that a job was made for."""
        if CHECKPOINT_ID.fullmatch(checkpoint_id) is None:
            raise CheckpointNotFound
        files = read_manifest(self._layout, checkpoint_id)
        chosen = {name: files[name] for name in files if only is None or name in only}
        if not chosen:
            raise CheckpointNotFound
        try:
            return read_shelf(checkpoint_id, self._layout.checkpoint(checkpoint_id), chosen)
        except FileNotFoundError as error:
            # Deleted since the manifest was read.
            raise CheckpointNotFound from error

    def exists(self, checkpoint_id: str) -> bool:
        """Say whether any file is stored under the id."""
        return bool(CHECKPOINT_ID.fullmatch(checkpoint_id) and read_manifest(self._layout, checkpoint_id))

    def delete(self, checkpoint_id: str) -> None:
        """Remove a checkpoint; who calls keeps jobs off it with `JobStore.deleting_checkpoint`."""
        if CHECKPOINT_ID.fullmatch(checkpoint_id) is None:
            raise CheckpointNotFound
        with self._lock(checkpoint_id):
            if not self.exists(checkpoint_id):
                raise CheckpointNotFound
            place = banish(self._layout.checkpoint(checkpoint_id), self._layout.trash)
        empty(place)
        try:
            self.remove_orphans()
        except (OSError, ValueError):
            # Another checkpoint's manifest, say; the reaper tries again.
            log.exception("what was decomposed of checkpoint %s cannot be removed yet", checkpoint_id)

    def remove_orphans(self) -> None:
        """Remove decompositions of files that no checkpoint holds any more."""
        self._decompositions.remove_orphans(self._digests)

    def sweep_parts(self, older_than_s: float) -> int:
        """Remove what killed processes have left; return how many things that were."""
        limit = time.time() - older_than_s
        parts = list(self._layout.parts.glob("*" + PART_ENDING))
        trash = [path for path in self._layout.trash.glob("*") if _older(path, limit)]
        for path in trash:
            empty(path)
        return sum(_swept(path, limit) for path in parts) + len(trash)

    def _digests(self) -> set[str]:
        ids = [folder.name for folder in self._layout.checkpoints.glob("*")]
        return {file.sha256 for name in ids for file in read_manifest(self._layout, name).values()}

    def _lock(self, checkpoint_id: str) -> AbstractContextManager[None]:
        return locked(self._layout.lock("checkpoint", checkpoint_id))

    def _publish(self, checkpoint_id: str, file: FileReport, index: ShardIndex | None, part: Part) -> bool:
        folder = self._layout.checkpoint(checkpoint_id)
        with self._lock(checkpoint_id), disk_errors():
            files = read_manifest(self._layout, checkpoint_id)
            if known := files.get(file.name):
                if known != file:
                    raise ContentConflict(file.name)
                return False
            check_addition(folder, files, name=file.name, sent=part.path, index=index)
            make_directory(folder)
            # A file counts from when the manifest names it: killed in between, it can be sent again.
            part.publish(folder / file.name)
            write_manifest(self._layout, checkpoint_id, files | {file.name: file})
        return True


def _swept(part: Path, limit: float) -> bool:
    """Remove a part that belongs to nobody; what is no file, or not ours to remove, stays."""
    try:
        if not (part.is_file() and _older(part, limit) and left_over(part)):
            return False
        part.unlink()
    except OSError:
        return False
    return True


def _older(path: Path, limit: float) -> bool:
    try:
        return path.stat().st_mtime < limit
    except OSError:
        return False
