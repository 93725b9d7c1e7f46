"""What tus 1.0.0 says in headers: versions, metadata, checksums and the state of an upload."""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import format_datetime
from typing import Annotated

from fastapi import Depends, Header
from pydantic import BeforeValidator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.problem import FieldProblem, ProblemKind
from service.errors import ProblemError
from service.headers import content_headers
from service.problems import ProblemResponse
from state.uploads.checksum import ALGORITHMS, Checksum
from state.uploads.folder import UploadRecord

VERSION = "1.0.0"
EXTENSIONS = ("creation", "creation-with-upload", "checksum", "termination", "expiration")
MEDIA_TYPE = "application/offset+octet-stream"
PATH = "/v1/uploads"
# A method in a header, for clients that can send nothing but POST.
OVERRIDABLE = frozenset({"PATCH", "DELETE", "HEAD"})
# Headers that may be there once only.
SINGLE = ("upload-length", "upload-offset", "upload-metadata", "upload-checksum", "tus-resumable")
SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_BYTES = 2**53


class Tus:
    """Adds the version to all answers below `/v1/uploads`, and takes the method of a POST from its header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
        if path != PATH and not path.startswith(PATH + "/"):
            await self.app(scope, receive, send)
            return
        method = Headers(scope=scope).get("x-http-method-override", "").upper()
        if scope["method"] == "POST" and method in OVERRIDABLE:
            scope = {**scope, "method": method}

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Tus-Resumable"] = VERSION
            await send(message)

        repeated = [name for name in SINGLE if len(Headers(scope=scope).getlist(name)) > 1]
        # Which one counts is not for us to guess: a proxy may have taken the other.
        answer = _sent_twice(repeated) if repeated else self.app
        await answer(scope, receive, send_with_version)


def _sent_twice(names: Iterable[str]) -> ProblemResponse:
    found = tuple(FieldProblem(pointer=f"/header/{name}", detail="send it once only") for name in names)
    return ProblemResponse(ProblemError(ProblemKind.INVALID_HTTP, errors=found))


def _check_version(
    tus_resumable: Annotated[
        str | None,
        Header(
            description="The version of tus that the client speaks.",
            examples=[VERSION],
            json_schema_extra={"const": VERSION},
        ),
    ] = None,
) -> None:
    """Refuse another version; a client that names none is taken at its word."""
    if tus_resumable not in {None, VERSION}:
        raise ProblemError(ProblemKind.TUS_VERSION)


SpokenVersion = Depends(_check_version)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the service reads of Upload-Metadata; `text` is all of it, as it came."""

    text: str
    checkpoint: str
    filename: str
    sha256: str | None


def _metadata(
    upload_metadata: Annotated[
        str,
        Header(
            max_length=8192,
            description="Pairs of a key and a value in base64, separated by commas: `checkpoint`, `filename` "
            "and, if you like, `sha256` with the hexadecimal digest that the file must have.",
            examples=["checkpoint bXktbW9kZWw=,filename bW9kZWwuc2FmZXRlbnNvcnM="],
        ),
    ],
) -> Metadata:
    """Read the metadata; keys that mean nothing here are left alone."""
    pairs = dict(_pair(part) for part in upload_metadata.split(","))
    missing = [key for key in ("checkpoint", "filename") if not pairs.get(key)]
    if missing:
        raise _bad_metadata(f"{' and '.join(missing)} is missing")
    sha256 = pairs.get("sha256")
    if sha256 is not None and SHA256.fullmatch(sha256) is None:
        raise _bad_metadata("sha256 is not 64 hexadecimal digits in lower case")
    return Metadata(upload_metadata, pairs["checkpoint"], pairs["filename"], sha256)


UploadMetadata = Annotated[Metadata, Depends(_metadata)]


def _pair(part: str) -> tuple[str, str]:
    key, _, encoded = part.strip().partition(" ")
    try:
        return key, base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, ValueError):
        raise _bad_metadata("a value is not the base64 of UTF-8") from None


def _bad_metadata(found: str) -> ProblemError:
    form = "Upload-Metadata must look like `checkpoint <base64>,filename <base64>`"
    return ProblemError(ProblemKind.INVALID_REQUEST, f"{form}; {found}.")


def _checksum(
    upload_checksum: Annotated[
        str | None,
        Header(
            description="`sha256` or `sha1` and the base64 of the digest of this request's bytes.",
            examples=["sha256 n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="],
        ),
    ] = None,
) -> Checksum | None:
    """Read the checksum of the request's bytes."""
    if upload_checksum is None:
        return None
    algorithm, _, encoded = upload_checksum.strip().partition(" ")
    if algorithm.lower() not in ALGORITHMS:
        raise ProblemError(ProblemKind.UNSUPPORTED_CHECKSUM)
    try:
        digest = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    checksum = Checksum(algorithm.lower(), digest)
    if len(digest) != checksum.digest_bytes:
        form = f"an algorithm and the base64 of a digest, which has {checksum.digest_bytes} bytes"
        raise ProblemError(ProblemKind.INVALID_REQUEST, f"Upload-Checksum must be {form}.")
    return checksum


UploadChecksum = Annotated[Checksum | None, Depends(_checksum)]


def _require_digits(given: object) -> object:
    """Refuse `1_0`, `+1` and `1.0`, which pydantic takes for whole numbers and a proxy may not."""
    if not (isinstance(given, str) and given.isascii() and given.isdigit()):
        raise ValueError("give a whole number in decimal digits")
    return given


Digits = BeforeValidator(_require_digits)
UploadLength = Annotated[
    int, Header(ge=0, le=MOST_BYTES, description="The size of the whole file.", examples=[90868376]), Digits
]
UploadOffset = Annotated[
    int,
    Header(ge=0, le=MOST_BYTES, description="How many bytes have arrived already.", examples=[33554432]),
    Digits,
]


def capabilities(*, max_bytes: int) -> dict[str, str]:
    """Say what the service can do."""
    return {
        "Tus-Version": VERSION,
        "Tus-Extension": ",".join(EXTENSIONS),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        "Tus-Max-Size": str(max_bytes),
    }


def upload_headers(record: UploadRecord) -> Mapping[str, str]:
    """Say how far an upload is and when it expires; of a published file also its digest."""
    headers = {
        "Upload-Offset": str(record.offset),
        "Upload-Expires": format_datetime(record.expires_at, usegmt=True),
        "Cache-Control": "no-store",
    }
    return headers | (content_headers(record.file.sha256) if record.complete and record.file else {})
