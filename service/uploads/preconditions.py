"""Request headers of an upload that are checked before its body is read: digests and preconditions."""

from typing import Annotated

from fastapi import Depends, Header

from schemas.checkpoint import FileInfo
from schemas.digest import OLD_FIELD, agreed_digest
from schemas.problem import ProblemKind
from service.dependencies import FileName, NewCheckpointId, ServicesDep
from service.errors import ProblemError
from service.headers import content_headers, etag_matches, if_match_holds

DIGEST = "sha-256=:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=:"
SAME_BYTES = "The same for the bytes of the body, which are the file's: no content coding is accepted."

ReprDigest = Annotated[
    str | None,
    Header(
        description="The SHA-256 of the file, RFC 9530; a file with another one is refused.",
        examples=[DIGEST],
    ),
]
ContentDigest = Annotated[str | None, Header(description=SAME_BYTES, examples=[DIGEST])]
OldDigest = Annotated[
    str | None,
    Header(
        alias=OLD_FIELD,
        description="The same as RFC 3230 wrote it.",
        examples=["SHA-256=n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="],
    ),
]
UploadIfMatch = Annotated[
    str | None,
    Header(
        description="The ETag that the stored file must have, or `*` for any; else 412.",
        examples=['"9f86d081884c7d65"'],
    ),
]
UploadIfNoneMatch = Annotated[
    str | None,
    Header(
        description="`*`: no file may be stored under this name; an ETag: not this one. Else 412.",
        examples=["*"],
    ),
]


def _expected_sha256(
    repr_digest: ReprDigest = None, content_digest: ContentDigest = None, digest: OldDigest = None
) -> bytes | None:
    """Return the SHA-256 that the body must have."""
    fields = {"Repr-Digest": repr_digest, "Content-Digest": content_digest, OLD_FIELD: digest}
    return agreed_digest(fields)


ExpectedSha256 = Annotated[bytes | None, Depends(_expected_sha256)]


def check_preconditions(
    services: ServicesDep,
    checkpoint_id: NewCheckpointId,
    filename: FileName,
    if_match: UploadIfMatch = None,
    if_none_match: UploadIfNoneMatch = None,
) -> None:
    """Refuse an upload whose precondition does not hold (RFC 9110, 13.1).

    What happens between this check and the end of the upload does no harm: a stored file never changes.
    """
    if if_match is None and if_none_match is None:
        return
    stored = services.checkpoints.file(checkpoint_id, filename)
    etag = None if stored is None else content_headers(stored.sha256)["ETag"]
    if if_match is not None and (etag is None or not if_match_holds(etag, if_match)):
        raise _failed("If-Match", stored)
    if if_none_match is not None and etag is not None and etag_matches(etag, if_none_match):
        raise _failed("If-None-Match", stored)


def _failed(header: str, stored: FileInfo | None) -> ProblemError:
    if stored is None:
        found, headers = "no file of this name is stored", {}
    else:
        found, headers = (
            "a file of this name is stored, with the ETag of this answer",
            content_headers(stored.sha256),
        )
    return ProblemError(
        ProblemKind.PRECONDITION_FAILED, values={"header": header, "found": found}, headers=headers
    )
