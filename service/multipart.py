"""Multipart bodies, parsed as they stream: each part goes to its own receiver, none is spooled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MAX_BOUNDARY_LENGTH, MultipartParser, parse_options_header
from starlette.requests import Request

from service import errors

PLAIN_ENCODINGS = frozenset({b"", b"7bit", b"8bit", b"binary"})
BROKEN = (
    "The multipart body is malformed; check its boundaries and part headers, or leave both to your client."
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class PartHead:
    """What a part says of itself."""

    name: str
    filename: str | None


class Part(Protocol):
    """Where one part's bytes go."""

    def write(self, block: bytes | memoryview) -> None:
        """Take the next bytes."""

    def end(self) -> None:
        """Be told that this was all."""


class Form(Protocol[T_co]):
    """Where the parts of one body go."""

    def part(self, head: PartHead) -> Part:
        """Begin a part."""

    def commit(self) -> T_co:
        """Keep what came; the body was whole."""

    def abort(self) -> None:
        """Leave nothing of what came."""


def boundary_of(request: Request) -> bytes:
    """Return the boundary that the head announces."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data":
        raise errors.UnsupportedMediaType("Send multipart/form-data, and say so in Content-Type.")
    if not 0 < len(boundary) <= MAX_BOUNDARY_LENGTH:
        raise errors.InvalidMultipart(
            "Content-Type must give the boundary, of 1 to 256 characters; leave that to your client."
        )
    return boundary


class MultipartSink(Generic[T]):
    """Feeds a body to the parser and its parts to a form."""

    def __init__(self, form: Form[T], *, boundary: bytes, max_parts: int) -> None:
        self._form = form
        self._parts_left = max_parts
        self._part: Part | None = None
        self._headers: dict[bytes, bytes] = {}
        self._field = self._value = b""
        self._whole = False
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
        """Take the next bytes of the body."""
        try:
            self._parser.write(block)
        except FormParserError:
            raise errors.InvalidMultipart(BROKEN) from None

    def commit(self) -> T:
        """Keep the form, provided that its closing boundary has come."""
        if not self._whole:
            raise errors.InvalidMultipart("The body ends before its closing boundary; send all of it.")
        return self._form.commit()

    def abort(self) -> None:
        """Leave nothing."""
        self._form.abort()

    def _begin_part(self) -> None:
        if self._parts_left == 0:
            raise errors.InvalidMultipart(
                "The body has too many parts; upload the files one by one with PUT."
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
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise errors.InvalidMultipart("Every part needs `Content-Disposition: form-data` with a name.")
        if self._headers.get(b"content-transfer-encoding", b"").strip().lower() not in PLAIN_ENCODINGS:
            raise errors.InvalidMultipart("Send the parts as they are, without Content-Transfer-Encoding.")
        filename = options.get(b"filename")
        self._part = self._form.part(
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
            self._part.end()
        self._part = None

    def _end(self) -> None:
        self._whole = True


class CappedText:
    """A small part, kept in memory up to its limit."""

    def __init__(self, *, limit_bytes: int, keep: Callable[[bytes], None]) -> None:
        self._limit_bytes = limit_bytes
        self._keep = keep
        self._text = bytearray()

    def write(self, block: bytes | memoryview) -> None:
        """Take the next bytes, within the limit."""
        if len(self._text) + len(block) > self._limit_bytes:
            raise errors.TooLarge(f"The spec may hold at most {self._limit_bytes} bytes.")
        self._text += block

    def end(self) -> None:
        """Hand the text over."""
        self._keep(bytes(self._text))
