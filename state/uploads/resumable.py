"""Resumable uploads: files that arrive in several requests, and outlive the processes that receive them."""

import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from state.checkpoints.store import CheckpointStore, check_chosen_id, check_names, checked_limit_bytes
from state.data_dir import DataDir
from state.errors import ContentConflict, TooManyUploads, UploadLocked, UploadNotFound
from state.files import Freed, disk_errors, locked, make_directory
from state.uploads.append import Append
from state.uploads.checksum import Checksum
from state.uploads.folder import UPLOAD_ID, UploadFolder, UploadRecord
from state.uploads.partial_file import RunningHashes

# Records of published files that an owner has; a client asks soon after the last byte, if at all.
MOST_COMPLETE = 1000


class ResumableUploads:
    """The resumable uploads of one owner below the data directory; sweeping is for all owners."""

    def __init__(
        self,
        data_dir: Path,
        checkpoints: CheckpointStore,
        *,
        expiry_s: float,
        hashes: RunningHashes | None = None,
    ) -> None:
        self._paths = DataDir(data_dir, checkpoints.owner)
        self._checkpoints = checkpoints
        self._expiry_s = expiry_s
        self._hashes = hashes or RunningHashes()

    def of(self, owner: str) -> "ResumableUploads":
        """Return the uploads of another owner."""
        checkpoints = self._checkpoints.of(owner)
        return ResumableUploads(self._paths.root, checkpoints, expiry_s=self._expiry_s, hashes=self._hashes)

    def create(
        self,
        checkpoint_id: str,
        name: str,
        *,
        size_bytes: int,
        limit_bytes: int,
        metadata: str,
        expected_sha256: str | None,
        most: int,
    ) -> UploadRecord:
        """Begin an upload, or refuse it by its name or length, or because `most` are unfinished."""
        check_chosen_id(checkpoint_id)
        check_names(checkpoint_id, name)
        checked_limit_bytes(name, size_bytes, limit_bytes=limit_bytes)
        stored = self._checkpoints.file(checkpoint_id, name)
        if stored is not None and not (
            stored.size_bytes == size_bytes and expected_sha256 in {None, stored.sha256}
        ):
            raise ContentConflict(name)
        record = UploadRecord(
            id="U" + secrets.token_hex(16),
            checkpoint=checkpoint_id,
            name=name,
            size_bytes=size_bytes,
            expected_sha256=expected_sha256,
            metadata=metadata,
            expires_at=datetime.now(UTC),
        )
        with locked(self._paths.lock("uploads", self._paths.owner)), disk_errors():
            others = list(self._records())
            if sum(not other.complete for other in others) >= most:
                raise TooManyUploads(most)
            self._forget_oldest([other for other in others if other.complete])
            folder = self._folder(record.id)
            make_directory(folder.path)
            folder.data.touch(mode=0o600)
            return folder.write(record)

    def _forget_oldest(self, complete: list[UploadRecord]) -> None:
        """Keep only the records of the last published files: all are read, and no quota counts them."""
        oldest_first = sorted(complete, key=lambda record: record.expires_at)
        for record in oldest_first[: max(0, len(complete) - MOST_COMPLETE)]:
            with suppress(UploadLocked, UploadNotFound):
                self.delete(record.id)

    def get(self, upload_id: str) -> UploadRecord:
        """Return what is known of an upload."""
        folder = self._folder(upload_id)
        record = folder.read()
        if record.complete or folder.data.exists():
            return record
        # It is being published, or a process was killed while it did.
        with suppress(UploadLocked), folder.locked():
            return self._recovered(folder)
        return record

    def append(self, upload_id: str, *, offset: int, checksum: Checksum | None = None) -> "Append":
        """Begin to write from this offset; nobody else can until the end."""
        return Append(self._folder(upload_id), self._checkpoints, offset=offset, checksum=checksum)

    def delete(self, upload_id: str) -> Freed:
        """Remove an upload; a file that is published already stays."""
        folder = self._folder(upload_id)
        with folder.locked():
            record = folder.read()
            folder.remove()
        # Until just now more may have arrived.
        return Freed(0 if record.complete else record.offset, time.time())

    def received_bytes(self) -> int:
        """Return the bytes of all files that are not published yet."""
        return sum(record.offset for record in self._records() if not record.complete)

    def sweep(self) -> int:
        """Remove the uploads of all owners that have expired, and what they hold; return their number."""
        removed = 0
        for paths in self._paths.of_all_owners():
            for path in paths.uploads.glob("*"):
                folder = self._at(path)
                try:
                    folder.read()
                except UploadNotFound:
                    removed += self._sweep(folder)
        return removed

    def _sweep(self, folder: UploadFolder) -> bool:
        """Remove an upload that has no valid record, unless it has only begun or somebody writes it."""
        try:
            if not folder.record.exists() and folder.path.stat().st_mtime > time.time() - self._expiry_s:
                return False
            with folder.locked():
                with suppress(UploadNotFound):
                    folder.read()
                    return False
                folder.remove()
        except (UploadLocked, UploadNotFound, OSError):
            return False
        return True

    def _folder(self, upload_id: str) -> UploadFolder:
        if UPLOAD_ID.fullmatch(upload_id) is None:
            raise UploadNotFound
        return self._at(self._paths.uploads / upload_id)

    def _at(self, path: Path) -> UploadFolder:
        return UploadFolder(path, self._paths.trash, self._hashes, self._expiry_s)

    def _records(self) -> Iterator[UploadRecord]:
        for path in self._paths.uploads.glob("U*"):
            with suppress(UploadNotFound):
                yield self._at(path).read()

    def _recovered(self, folder: UploadFolder) -> UploadRecord:
        """Return the record of an upload whose bytes a process that was killed had begun to publish."""
        record = folder.read()
        if record.complete or folder.data.exists():
            return record
        if record.file is None:
            raise UploadNotFound
        if self._checkpoints.file(record.checkpoint, record.name) == record.file:
            return folder.complete(record)
        if not self._checkpoints.take_back(record.checkpoint, record.file, folder.data):
            raise UploadNotFound
        return record
