"""Everything that the memory refuses.

StateError
├── NotFound
│   ├── JobNotFound          no such job, or an id that cannot be one
│   └── CheckpointNotFound   no such checkpoint, or an id that cannot be one
├── Conflict
│   ├── ContentConflict      other bytes are stored under that name
│   ├── CheckpointInUse      an unfinished job needs it
│   ├── CheckpointGone       it was deleted while the job was being made
│   └── IdempotencyConflict  the key belongs to another request
├── DigestMismatch           the bytes are not those that were announced
├── TooLarge                 more bytes than allowed
├── NoSpace                  the disk is full
├── BadCursor                a cursor that no list has given
└── StoreUnavailable         Redis cannot be reached or cannot answer

`schemas.checkpoint.CheckpointError`, a malformed file, passes through as it is.
"""


# ruff: noqa: N818 - the names say what happened; "Error" behind each would add nothing.


class StateError(Exception):
    """Base of all of them; the message says what is wrong and what to do."""


class NotFound(StateError):
    """Nothing under that id."""


class JobNotFound(NotFound):
    """No such job, or an id that cannot be one."""

    def __init__(self) -> None:
        super().__init__("There is no such job; look for its id with GET /v1/jobs.")


class CheckpointNotFound(NotFound):
    """No such checkpoint, or an id that cannot be one."""

    def __init__(self) -> None:
        super().__init__("There is no such checkpoint; upload its files first.")


class Conflict(StateError):
    """What is asked for does not fit what is there."""


class ContentConflict(Conflict):
    """Other bytes are stored under that name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Other bytes are already stored as {name}; upload under another checkpoint id, "
            "or delete this checkpoint first."
        )


class CheckpointInUse(Conflict):
    """An unfinished job needs it."""

    def __init__(self) -> None:
        super().__init__("A queued or running job needs this checkpoint; cancel the job or wait for its end.")


class CheckpointGone(Conflict):
    """It was deleted or changed while the job was being made."""

    def __init__(self) -> None:
        super().__init__("The checkpoint was deleted or replaced meanwhile; upload it again.")


class IdempotencyConflict(Conflict):
    """The key belongs to another request."""

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request; take a fresh key.")


class DigestMismatch(StateError):
    """The bytes are not those that were announced."""

    def __init__(self, *, expected: str, actual: str) -> None:
        super().__init__(f"The SHA-256 of the body is {actual}, not {expected} as announced; send it again.")
        self.expected = expected
        self.actual = actual


class TooLarge(StateError):
    """More bytes than allowed."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"The body is larger than the limit of {limit_bytes} bytes; send less, or have the limit raised."
        )
        self.limit_bytes = limit_bytes


class NoSpace(StateError):
    """The disk is full."""

    def __init__(self) -> None:
        super().__init__("There is not enough disk space; delete jobs or checkpoints, or try again later.")


class BadCursor(StateError):
    """A cursor that no list has given."""

    def __init__(self) -> None:
        super().__init__("The cursor is not one that a list has given; start again without it.")


class StoreUnavailable(StateError):
    """Redis cannot be reached or cannot answer."""

    def __init__(self) -> None:
        super().__init__("The job store cannot be reached; try again in a few seconds.")
