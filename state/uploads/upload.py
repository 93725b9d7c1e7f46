"""Receiving one file: limited, counted, hashed, checked and written in one pass."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from schemas.checkpoint import FileInfo
from schemas.format.companion import CONFIG_NAME, parse_config
from schemas.format.header import LENGTH_BYTES, MAX_HEADER_BYTES, Header
from schemas.format.header_stream import HeaderParser
from schemas.format.index import ShardIndex, check_index_size, parse_index_chunks
from schemas.format.names import is_companion, is_index
from state.checkpoints.parsed_header import PackedHeader
from state.errors import Busy, DigestMismatch, TooLarge
from state.files import AtomicFile, disk_errors

if TYPE_CHECKING:
    from schemas.format.cursor import Chunk

# What a file holds, as far as it is parsed; a companion has nothing that others must agree with.
Content = Header | ShardIndex | None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A stored file; `created` is False where the same bytes were stored before."""

    info: FileInfo
    created: bool


class HeadersUnderWay:
    """The bytes of all headers that this process receives, each of which it keeps until it is whole."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._nbytes = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> None:
        """Count a header that begins, or refuse it; one alone is never refused."""
        with self._lock:
            if self._nbytes and self._nbytes + nbytes > self._limit_bytes:
                raise Busy(f"Headers of {self._nbytes} bytes are being received already.")
            self._nbytes += nbytes

    def give(self, nbytes: int) -> None:
        with self._lock:
            self._nbytes -= nbytes


REREAD_BYTES = 1 << 20
HEADERS_UNDER_WAY = HeadersUnderWay(2 * MAX_HEADER_BYTES)
# The interpreter parses only one header at a time anyway, and each takes several times its size meanwhile.
ONE_AT_A_TIME = threading.Lock()


class IndexParser:
    """Collects an index, which is small, and parses it at the end; the counterpart of `HeaderParser`."""

    def __init__(self) -> None:
        self._chunks: deque[Chunk] = deque()
        self._received_bytes = 0

    def feed(self, block: bytes | bytearray | memoryview) -> None:
        """Take the next bytes, and refuse an index at the byte that makes it too large."""
        self._received_bytes += len(block)
        check_index_size(self._received_bytes)
        self._chunks.append(bytes(block))

    def finish(self, total_bytes: int) -> ShardIndex:  # noqa: ARG002 - as HeaderParser has it
        return parse_index_chunks(self._chunks)


class ConfigParser:
    """Collects a model's config.json and checks at the end that it is one."""

    def __init__(self) -> None:
        self._raw = bytearray()

    def feed(self, block: bytes | bytearray | memoryview) -> None:
        self._raw += block

    def finish(self, total_bytes: int) -> None:  # noqa: ARG002 - as HeaderParser has it
        parse_config(self._raw)


class AnyContent:
    """The parser of other companions, which are only stored."""

    def feed(self, block: bytes | bytearray | memoryview) -> None:
        """Look at nothing."""

    def finish(self, total_bytes: int) -> None:
        """Accept everything."""


class Upload:
    """A file that is invisible until `commit`; a block that ends without it leaves nothing."""

    def __init__(
        self,
        file: AtomicFile,
        publish: Callable[[AtomicFile, ShardIndex | None, PackedHeader | None], bool],
        *,
        content_bytes: int | None,
        limit_bytes: int,
        expected_sha256: bytes | None,
    ) -> None:
        self.name = file.path.name
        self._file = file
        self._publish = publish
        self._limit_bytes = limit_bytes
        self._expected_sha256 = expected_sha256
        self._content: Content = None
        self._is_finished = False
        self._parser = _parser(self.name, content_bytes)
        self.header: PackedHeader | None = None
        self._counted_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abort()

    @property
    def size_bytes(self) -> int:
        """The bytes written so far."""
        return self._file.size_bytes

    @property
    def info(self) -> FileInfo:
        """The file's name, and the size and digest of what was written so far."""
        return self._file.info

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Take the next block; blocks of a few MiB keep the cost of a call small."""
        if self._file.size_bytes + len(block) > self._limit_bytes:
            raise too_large(self.name, self._limit_bytes)
        self._feed(block, at=self._file.size_bytes)
        with disk_errors():
            self._file.write(block)

    def reread(self) -> None:
        """Parse what the file has held since before this upload was begun: all of it, or its header."""
        if isinstance(self._parser, AnyContent):
            return
        left_bytes = self._file.size_bytes
        with self._file.part.open("rb", buffering=0) as file:
            while self.header is None and (block := file.read(min(REREAD_BYTES, left_bytes))):
                self._feed(block, at=self._file.size_bytes - left_bytes)
                left_bytes -= len(block)

    def _feed(self, block: bytes | bytearray | memoryview, *, at: int) -> None:
        """Parse the next block, which begins at this byte of the file."""
        if isinstance(self._parser, HeaderParser) and self.header is None:
            self._take_header(self._parser, block, at=at)
        else:
            self._parser.feed(block)

    def _take_header(self, parser: HeaderParser, block: bytes | bytearray | memoryview, *, at: int) -> None:
        """Feed the parser, and keep a complete header in a few bytes until the file is published."""
        first = memoryview(block)[: LENGTH_BYTES - min(LENGTH_BYTES, at)]
        parser.feed(first)
        if parser.header_bytes and not self._counted_bytes:
            HEADERS_UNDER_WAY.take(parser.header_bytes)
            self._counted_bytes = parser.header_bytes
        with ONE_AT_A_TIME:
            parser.feed(memoryview(block)[len(first) :])
            if parser.header is None:
                return
            self.header = PackedHeader.of(parser.header)
            parser.forget_tensors()
        self._give_back()
        self.header.size.check()

    def _give_back(self) -> None:
        HEADERS_UNDER_WAY.give(self._counted_bytes)
        self._counted_bytes = 0

    def finish(self) -> Content:
        """Check that the file is complete and has the expected digest; no bytes may follow.

        The tensors of a header are unpacked at each call, so that they are not kept for long.
        """
        if not self._is_finished:
            info, expected = self._file.info, self._expected_sha256
            if expected is not None and info.sha256 != expected.hex():
                raise DigestMismatch(expected=expected.hex(), actual=info.sha256)
            self._content = self._parser.finish(info.size_bytes)
            self._is_finished = True
        return self._content if self.header is None else self.header.header()

    def commit(self) -> StoredFile:
        """Finish the file, make it durable, and publish it."""
        if not self._is_finished:
            self.finish()
        content = self._content
        # Before the publication, which holds the checkpoint's lock.
        with disk_errors():
            self._file.seal()
        index = content if isinstance(content, ShardIndex) else None
        created = self._publish(self._file, index, self.header)
        self.abort()
        return StoredFile(self._file.info, created)

    def abort(self) -> None:
        """Remove the temporary file, if it is not published."""
        self._give_back()
        self._file.abort()


def too_large(name: str, limit_bytes: int) -> TooLarge:
    """Return the refusal of a file; only a companion has a limit of its own, apart from the body's."""
    return TooLarge(limit_bytes, f"The file {name}") if is_companion(name) else TooLarge(limit_bytes)


def _parser(name: str, content_bytes: int | None) -> IndexParser | ConfigParser | AnyContent | HeaderParser:
    if is_index(name):
        return IndexParser()
    if name == CONFIG_NAME:
        return ConfigParser()
    return AnyContent() if is_companion(name) else HeaderParser(content_bytes=content_bytes)
