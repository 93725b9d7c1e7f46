"""Multipart bodies, parsed as they arrive: each part goes to a receiver of its own, none is buffered."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MAX_BOUNDARY_LENGTH, MultipartParser, parse_options_header
from starlette.requests import Request

from schemas.problem import ProblemKind
from service.errors import ProblemError
from service.json_body import media_type

PLAIN_ENCODINGS = frozenset({b"", b"7bit", b"8bit", b"binary"})
EXTENDED_FILENAME = re.compile(
    rb";\s*filename\*\s*=\s*(?P<charset>utf-8|iso-8859-1)'[^']*'(?P<text>[^\s;\"]+)", re.IGNORECASE
)
MALFORMED = "The multipart body is malformed; let your client write its boundaries and part headers."

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class PartHead:
    """A part's name, and its file name if it has one."""

    name: str
    filename: str | None


class Part(Protocol):
    """Where one part's bytes go."""

    def write(self, block: bytes | memoryview) -> None: ...

    def finish(self) -> object:
        """Take note that the part is complete."""


class MultipartReceiver(Protocol[T_co]):
    """Where the parts of one body go."""

    def part(self, head: PartHead) -> Part:
        """Return the receiver of a part that begins."""

    def commit(self) -> T_co:
        """Keep the parts; the body is complete."""

    def abort(self) -> None:
        """Remove all parts."""


def is_multipart(request: Request) -> bool:
    return media_type(request) == "multipart/form-data"


def boundary_of(request: Request) -> bytes:
    """Return the boundary that Content-Type gives."""
    media, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if media != b"multipart/form-data":
        raise ProblemError(ProblemKind.UNSUPPORTED_MEDIA_TYPE, values={"media_types": "multipart/form-data"})
    if not 0 < len(boundary) <= MAX_BOUNDARY_LENGTH:
        raise ProblemError(
            ProblemKind.INVALID_MULTIPART,
            "Content-Type must give the boundary, of 1 to 256 characters; let your client write it.",
        )
    return boundary


class MultipartSink(Generic[T]):
    """Feeds a body to the parser and its parts to a receiver."""

    def __init__(self, receiver: MultipartReceiver[T], *, boundary: bytes, max_parts: int) -> None:
        self._receiver = receiver
        self._parts_left = max_parts
        self._part: Part | None = None
        self._headers: dict[bytes, bytes] = {}
        self._field = self._value = b""
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._open_part,
                "on_part_data": self._part_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def write(self, block: bytes) -> None:
        try:
            self._parser.write(block)
        except FormParserError:
            raise ProblemError(ProblemKind.INVALID_MULTIPART, MALFORMED) from None

    def commit(self) -> T:
        """Commit the parts, if the closing boundary has arrived."""
        if not self._complete:
            raise ProblemError(
                ProblemKind.INVALID_MULTIPART, "The body ends before its closing boundary; send all of it."
            )
        return self._receiver.commit()

    def abort(self) -> None:
        self._receiver.abort()

    def _begin_part(self) -> None:
        if self._parts_left == 0:
            raise ProblemError(
                ProblemKind.INVALID_MULTIPART,
                "The body has too many parts; upload the files one by one with PUT.",
            )
        self._parts_left -= 1
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _open_part(self) -> None:
        disposition, options = parse_options_header(
            self._headers.get(b"content-disposition", b"").decode("latin-1")
        )
        if disposition != b"form-data" or b"name" not in options:
            raise ProblemError(
                ProblemKind.INVALID_MULTIPART,
                "Every part needs `Content-Disposition: form-data` with a name.",
            )
        if self._headers.get(b"content-transfer-encoding", b"").strip().lower() not in PLAIN_ENCODINGS:
            raise ProblemError(
                ProblemKind.INVALID_MULTIPART,
                "Send the parts as they are, without Content-Transfer-Encoding.",
            )
        filename = options.get(b"filename") or _extended_filename(self._headers[b"content-disposition"])
        self._part = self._receiver.part(
            PartHead(
                name=options[b"name"].decode("utf-8", "replace"),
                filename=None if filename is None else filename.decode("utf-8", "replace"),
            )
        )

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part is not None:
            self._part.write(data if end - start == len(data) else memoryview(data)[start:end])

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.finish()
        self._part = None

    def _end(self) -> None:
        self._complete = True


def _extended_filename(disposition: bytes) -> bytes | None:
    """Return the file name, in UTF-8, of a client that sends it by RFC 8187 alone, percent-encoded."""
    found = EXTENDED_FILENAME.search(disposition)
    if found is None:
        return None
    try:
        return unquote_to_bytes(found["text"]).decode(found["charset"].decode()).encode()
    except UnicodeDecodeError:
        reason = "The `filename*` of a part is not in the charset that it names; send it in UTF-8."
        raise ProblemError(ProblemKind.INVALID_MULTIPART, reason) from None


class TextPart:
    """A small part, kept in memory: `subject` names it in the message that it is too large."""

    def __init__(self, *, subject: str, limit_bytes: int, receive: Callable[[bytes], object]) -> None:
        self._subject = subject
        self._limit_bytes = limit_bytes
        self._receive = receive
        self._text = bytearray()

    def write(self, block: bytes | memoryview) -> None:
        if len(self._text) + len(block) > self._limit_bytes:
            values = {"subject": self._subject, "limit_bytes": self._limit_bytes}
            raise ProblemError(ProblemKind.TOO_LARGE, values=values)
        self._text += block

    def finish(self) -> None:
        self._receive(bytes(self._text))
