"""Every error that `state` raises. `slug` is the kind of problem that it is for a client (`service.errors`).

StateError
├── NotFound
│   ├── JobNotFound          no such job, or an id that cannot be one
│   └── CheckpointNotFound   no such checkpoint, or an id that cannot be one
├── Conflict
│   ├── ContentConflict      other bytes are stored under that name
│   ├── CheckpointInUse      an unfinished job needs it
│   ├── CheckpointGone       it was deleted while the job was being created
│   └── IdempotencyMismatch  the key was used for another request
├── DigestMismatch           the bytes have another SHA-256 than the client gave
├── TooLarge                 more bytes than allowed
├── OutOfSpace               the disk is full
├── BadCursor                the cursor does not come from a list
└── StoreUnavailable         Redis cannot be reached or cannot answer

`schemas.format.errors.CheckpointError`, a malformed file, is not wrapped.
"""

from typing import ClassVar

# ruff: noqa: N818 - the names say what happened; "Error" behind each would add nothing.


class StateError(Exception):
    """Base of all of them; the message says what is wrong and what to do."""

    slug: ClassVar[str]


class NotFound(StateError):
    """Nothing under that id."""


class JobNotFound(NotFound):
    """No such job, or an id that cannot be one."""

    slug = "job-not-found"

    def __init__(self) -> None:
        super().__init__("There is no such job; look for its id with GET /v1/jobs.")


class CheckpointNotFound(NotFound):
    """No such checkpoint, or an id that cannot be one."""

    slug = "checkpoint-not-found"

    def __init__(self) -> None:
        super().__init__("There is no such checkpoint; upload its files first.")


class Conflict(StateError):
    """The request conflicts with what is stored."""


class ContentConflict(Conflict):
    """Other bytes are stored under that name."""

    slug = "content-conflict"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Other bytes are already stored as {name}; upload under another checkpoint id, "
            "or delete this checkpoint first."
        )


class CheckpointInUse(Conflict):
    """An unfinished job needs it."""

    slug = "checkpoint-in-use"

    def __init__(self) -> None:
        super().__init__("A queued or running job needs this checkpoint; cancel the job or wait for its end.")


class CheckpointGone(Conflict):
    """It was deleted or changed while the job was being created."""

    slug = "checkpoint-gone"

    def __init__(self) -> None:
        super().__init__("The checkpoint was deleted or replaced during the request; upload it again.")


class IdempotencyMismatch(Conflict):
    """The key was used for another request."""

    slug = "idempotency-mismatch"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request; use a new key.")


class DigestMismatch(StateError):
    """The bytes have another SHA-256 than the client gave."""

    slug = "digest-mismatch"

    def __init__(self, *, expected: str, actual: str) -> None:
        super().__init__(
            f"The SHA-256 of the body is {actual}, not {expected} as Repr-Digest says; send it again."
        )
        self.expected = expected
        self.actual = actual


class TooLarge(StateError):
    """More bytes than allowed."""

    slug = "too-large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"The body is larger than the limit of {limit_bytes} bytes; send less, or raise the limit."
        )
        self.limit_bytes = limit_bytes


class OutOfSpace(StateError):
    """The disk is full."""

    slug = "out-of-space"

    def __init__(self) -> None:
        super().__init__("There is not enough disk space; delete jobs or checkpoints, or try again later.")


class BadCursor(StateError):
    """The cursor does not come from a list."""

    slug = "invalid-request"

    def __init__(self) -> None:
        super().__init__("The cursor does not come from a list of jobs; start again without it.")


class StoreUnavailable(StateError):
    """Redis cannot be reached or cannot answer."""

    slug = "store-unavailable"

    def __init__(self) -> None:
        super().__init__("Redis cannot be reached; try again in a few seconds.")
