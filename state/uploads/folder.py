"""What lies on the disk of one resumable upload: its record, what has arrived of its file, and its lock."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import Field, ValidationError

from schemas.base import PersistedModel
from schemas.checkpoint import FileInfo
from state.errors import OffsetMismatch, UploadLocked, UploadNotFound
from state.files import move_to_trash, purge, write_atomic
from state.uploads.partial_file import RunningHashes

UPLOAD_ID = re.compile(r"U[0-9a-f]{32}")


class UploadRecord(PersistedModel):
    """What is known of a resumable upload.

    The last byte counts only once the file is published: one whose process is killed before that is finished
    by sending the last byte again.
    """

    id: str
    checkpoint: str
    name: str
    size_bytes: int = Field(ge=0)
    expected_sha256: str | None
    # As the client sent it.
    metadata: str
    expires_at: datetime
    offset: int = Field(default=0, ge=0)
    header_checked: bool = False
    # Set just before the file is published.
    file: FileInfo | None = None
    complete: bool = False

    def check_offset(self, given: int) -> None:
        if given != self.offset:
            raise OffsetMismatch(given=given, offset=self.offset)


@dataclass(frozen=True, slots=True)
class UploadFolder:
    """The folder of one upload."""

    path: Path
    trash: Path
    hashes: RunningHashes
    expiry_s: float

    @property
    def record(self) -> Path:
        return self.path / "upload.json"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the upload, or refuse at once."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            raise UploadNotFound from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UploadLocked from None
            yield
        finally:
            os.close(descriptor)

    def read(self) -> UploadRecord:
        """Read the record; one that has expired, or is damaged, is not there."""
        try:
            record = UploadRecord.model_validate_json(self.record.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            raise UploadNotFound from None
        if record.expires_at <= datetime.now(UTC):
            raise UploadNotFound
        return record

    def write(self, record: UploadRecord) -> UploadRecord:
        """Write the record, which expires later from now on; all but `create` hold the lock."""
        record = record.model_copy(
            update={"expires_at": datetime.now(UTC) + timedelta(seconds=self.expiry_s)}
        )
        write_atomic(self.record, record.model_dump_json(indent=1).encode())
        return record

    def complete(self, record: UploadRecord) -> UploadRecord:
        """Note that the file is published; the record stays for a while, for clients that ask."""
        record = self.write(record.model_copy(update={"offset": record.size_bytes, "complete": True}))
        self.data.unlink(missing_ok=True)
        self.hashes.forget(record.id)
        return record

    def remove(self) -> None:
        """Remove everything; the caller holds the lock."""
        self.hashes.forget(self.path.name)
        purge(move_to_trash(self.path, self.trash))
