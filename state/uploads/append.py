"""Writing on at a resumable upload: one request's bytes, kept as they come, and published after the last."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from schemas.format.errors import CheckpointError
from state.checkpoints.store import READ_ONLY, CheckpointStore
from state.errors import (
    ChecksumMismatch,
    ContentConflict,
    DigestMismatch,
    TooLarge,
    UploadLocked,
    UploadNotFound,
)
from state.files import disk_errors
from state.uploads.checksum import Checksum
from state.uploads.folder import UploadFolder, UploadRecord
from state.uploads.partial_file import PartialFile
from state.uploads.upload import Upload

# What has arrived is made durable this often: no more is lost when a process is killed.
KEEP_EVERY_S = 1.0
# After one of these the file can never be published.
REFUSALS = (CheckpointError, DigestMismatch, TooLarge, ContentConflict)

log = logging.getLogger("eckart.state")


class Append:
    """One request's bytes. Without a checksum each byte counts that arrives, with one all or none.

    Its header is checked as it arrives; with a checksum, once that is right.
    """

    def __init__(
        self, folder: UploadFolder, checkpoints: CheckpointStore, *, offset: int, checksum: Checksum | None
    ) -> None:
        self._folder = folder
        self._checksum = checksum
        self._removed = False
        with ExitStack() as opened:
            opened.enter_context(folder.locked())
            self._record = folder.read()
            self._record.check_offset(offset)
            if self._record.complete:
                raise UploadLocked  # by a request that has just sent the rest
            self._file = self._open_file(checkpoints)
            self._upload = self._begin_upload(checkpoints)
            opened.callback(self._upload.abort)
            self._parses = checksum is None and not self._record.header_checked
            if self._parses:
                with self._refused_for_good():
                    self._upload.reread()
            self._opened = opened.pop_all()
        self._due_s = time.monotonic() + KEEP_EVERY_S

    def write(self, block: bytes) -> None:
        """Take the next block."""
        with self._refused_for_good():
            if self._parses:
                self._upload.write(block)
            else:
                with disk_errors():
                    self._file.write(block)
        if self._checksum is not None:
            self._checksum.update(block)
        elif time.monotonic() >= self._due_s:
            self._keep()
            self._due_s = time.monotonic() + KEEP_EVERY_S

    def commit(self) -> UploadRecord:
        """Keep what has arrived, and publish the file if that is all of it."""
        if self._checksum is not None:
            self._check_sum(self._checksum)
        with self._refused_for_good():
            whole = self._file.size_bytes == self._record.size_bytes
            if not self._parses and (whole or not self._record.header_checked):
                self._upload.reread()
            if whole:
                self._publish()
        if not whole:
            self._keep()
        self._close()
        return self._record

    def abort(self) -> None:
        """Keep what has arrived of a request that broke off, unless a checksum was promised for it."""
        try:
            if self._checksum is not None:
                self._file.move_to(self._record.offset)
            elif not self._removed and self._file.size_bytes > self._record.offset:
                self._keep()
        except OSError:
            log.exception("upload %s: what has arrived last cannot be kept", self._record.id)
        finally:
            self._close()

    def _open_file(self, checkpoints: CheckpointStore) -> PartialFile:
        record = self._record
        try:
            return PartialFile(
                checkpoints.file_path(record.checkpoint, record.name),
                self._folder.data,
                offset=record.offset,
                expected_bytes=record.size_bytes,
                mode=READ_ONLY,
                hashed=self._folder.hashes.get(record.id, record.offset),
                hash_at_once=self._checksum is None,
            )
        except FileNotFoundError:
            raise UploadNotFound from None

    def _begin_upload(self, checkpoints: CheckpointStore) -> Upload:
        record = self._record
        # What was about to be published once must be the same when it is published after all.
        expected = record.expected_sha256 if record.file is None else record.file.sha256
        return checkpoints.upload_of(
            record.checkpoint,
            self._file,
            content_bytes=record.size_bytes,
            limit_bytes=record.size_bytes,
            expected_sha256=None if expected is None else bytes.fromhex(expected),
        )

    def _check_sum(self, checksum: Checksum) -> None:
        if not checksum.matches:
            raise ChecksumMismatch
        if self._file.hashed_bytes == self._record.offset:
            self._file.catch_up()

    def _keep(self) -> None:
        """Make durable what has arrived, so that it counts."""
        with disk_errors():
            self._file.sync()
            self._record = self._folder.write(
                self._record.model_copy(
                    update={
                        "offset": max(0, min(self._file.size_bytes, self._record.size_bytes - 1)),
                        "header_checked": self._record.header_checked or self._upload.header is not None,
                    }
                )
            )

    def _publish(self) -> None:
        self._file.catch_up()
        self._upload.finish()
        with disk_errors():
            named = self._record.model_copy(update={"file": self._upload.info})
            self._record = self._folder.write(named)
        self._upload.commit()
        self._record = self._folder.complete(self._record)

    @contextmanager
    def _refused_for_good(self) -> Iterator[None]:
        """Remove the upload if its file is refused, as nothing is left of any other that is."""
        try:
            yield
        except REFUSALS:
            self._removed = True
            self._folder.remove()
            raise

    def _close(self) -> None:
        if not (self._removed or self._record.complete):
            self._folder.hashes.put(self._record.id, *self._file.hashed)
        self._opened.close()
