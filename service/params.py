"""Parameters that several operations share, each described once."""

from typing import Annotated

from fastapi import Header, Path, Query

from schemas.format.index import CHECKPOINT_ID
from schemas.job import JobState

CheckpointId = Annotated[str, Path(description="The checkpoint's id.", examples=["my-model"])]
NewCheckpointId = Annotated[
    str,
    Path(
        pattern=CHECKPOINT_ID.pattern,
        description="The checkpoint's id; you choose it.",
        examples=["my-model"],
    ),
]
JobId = Annotated[str, Path(description="The job's id.", examples=["J5b0"])]
FileName = Annotated[
    str, Path(max_length=128, description="The file's name.", examples=["model.safetensors"])
]
ResultName = Annotated[str, Path(description="The file's name.", examples=["model.safetensors"])]
IfNoneMatch = Annotated[
    str | None,
    Header(description="An ETag from before: 304 if nothing has changed.", examples=['"9f86d081884c7d65"']),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="Repeat a request under the same key to get the first job instead of a second one.",
        examples=["3f0c1d6e-2f5b-4c1e-9f64-8f3a1f7f0a11"],
    ),
]
ReprDigest = Annotated[
    str | None,
    Header(
        description="The SHA-256 of the file, RFC 9530; other bytes are refused.",
        examples=["sha-256=:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=:"],
    ),
]
Wait = Annotated[
    float,
    Query(
        ge=0,
        le=60,
        description="Hold the answer until the state changes, at most so many seconds.",
        examples=[30],
    ),
]
StateFilter = Annotated[
    JobState | None, Query(description="Only jobs in this state.", examples=["succeeded"])
]
Limit = Annotated[int, Query(ge=1, le=200, description="The most jobs of one page.", examples=[50])]
Cursor = Annotated[
    str | None,
    Query(max_length=256, description="`next_cursor` of the page before.", examples=["1767323045000000"]),
]
