"""Every error that `state` raises. `kind` is the problem that it is for a client; the table has its text.

`schemas.format.errors.CheckpointError`, a malformed file, is not wrapped.
"""

from typing import ClassVar

from schemas.problem import ProblemKind

# ruff: noqa: N818 - the names say what happened; "Error" behind each would add nothing.


class StateError(Exception):
    """Base of all of them; the message is the kind's detail (`schemas.problem`), filled in."""

    kind: ClassVar[ProblemKind]

    def __init__(self, **values: object) -> None:
        self.values = values
        super().__init__(self.kind.text(**values))


class JobNotFound(StateError):
    """No such job, or an id that cannot be one."""

    kind = ProblemKind.JOB_NOT_FOUND


class UnreadableRecord(StateError):
    """What is kept of a job was written by another release, or is damaged."""

    kind = ProblemKind.UNREADABLE_RECORD


class JobNotFailed(StateError):
    """Only a failed job can be resumed."""

    kind = ProblemKind.JOB_NOT_FAILED

    def __init__(self, state: str) -> None:
        super().__init__(state=state)


class FailureStays(StateError):
    """A job that failed because of its input cannot be resumed."""

    kind = ProblemKind.FAILURE_STAYS

    def __init__(self, why: str) -> None:
        super().__init__(why=why)


class CheckpointNotFound(StateError):
    """No such checkpoint, or an id that cannot be one."""

    kind = ProblemKind.CHECKPOINT_NOT_FOUND


class UploadNotFound(StateError):
    """No such resumable upload, or one that has expired."""

    kind = ProblemKind.UPLOAD_NOT_FOUND


class UploadLocked(StateError):
    """Another request writes the same resumable upload."""

    kind = ProblemKind.UPLOAD_LOCKED


class OffsetMismatch(StateError):
    """Another byte of a resumable upload comes next."""

    kind = ProblemKind.OFFSET_MISMATCH

    def __init__(self, *, given: int, offset: int) -> None:
        super().__init__(given=given, offset=offset)


class ChecksumMismatch(StateError):
    """The bytes of one request have another checksum than the client gave."""

    kind = ProblemKind.CHECKSUM_MISMATCH


class TooManyUploads(StateError):
    """The owner has as many resumable uploads unfinished as allowed."""

    kind = ProblemKind.OVER_QUOTA

    def __init__(self, most: int) -> None:
        super().__init__(found=f"{most} uploads are unfinished", advice="finish one, or delete it")


class ContentConflict(StateError):
    """Other bytes are stored under that name."""

    kind = ProblemKind.CONTENT_CONFLICT

    def __init__(self, name: str) -> None:
        super().__init__(name=name)


class CheckpointInUse(StateError):
    """An unfinished job needs it."""

    kind = ProblemKind.CHECKPOINT_IN_USE


class CheckpointGone(StateError):
    """It was deleted or replaced while the job was being created."""

    kind = ProblemKind.CHECKPOINT_GONE


class IdempotencyMismatch(StateError):
    """The key was used for another request."""

    kind = ProblemKind.IDEMPOTENCY_MISMATCH


class TooManyJobs(StateError):
    """The owner has as many jobs waiting as allowed."""

    kind = ProblemKind.OVER_QUOTA

    def __init__(self, most: int | None) -> None:
        advice = "wait until some have begun, or cancel some"
        super().__init__(found=f"{most} jobs are waiting already", advice=advice)


class DigestMismatch(StateError):
    """The bytes have another SHA-256 than the client gave."""

    kind = ProblemKind.DIGEST_MISMATCH

    def __init__(self, *, expected: str, actual: str) -> None:
        super().__init__(expected=expected, actual=actual)


class TooLarge(StateError):
    """More bytes than allowed."""

    kind = ProblemKind.TOO_LARGE

    def __init__(self, limit_bytes: int, subject: str = "The body") -> None:
        super().__init__(subject=subject, limit_bytes=limit_bytes)


class OutOfSpace(StateError):
    """The disk is full; `found` ends a sentence on what is needed and free, where that is known."""

    kind = ProblemKind.OUT_OF_SPACE

    def __init__(self, found: str = "") -> None:
        super().__init__(found=found)


class Busy(StateError):
    """Too much is under way at a time."""

    kind = ProblemKind.BUSY

    def __init__(self, reason: str) -> None:
        super().__init__(reason=reason)


class FilesLocked(StateError):
    """Another process has held the lock on these files for longer than anyone should wait."""

    kind = ProblemKind.FILES_LOCKED


class RedisUnavailable(StateError):
    """Redis cannot be reached or cannot answer."""

    kind = ProblemKind.STORE_UNAVAILABLE
