"""Receiving one file: limited, counted, hashed, checked and written in one pass."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from schemas.checkpoint import FileInfo
from schemas.format.header import Header
from schemas.format.header_stream import HeaderParser
from schemas.format.index import MAX_INDEX_BYTES, ShardIndex, parse_index
from schemas.format.names import is_index
from state.errors import DigestMismatch, TooLarge
from state.files import AtomicFile, disk_errors


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A stored file; `created` is False where the same bytes were stored before."""

    info: FileInfo
    created: bool


class IndexParser:
    """Collects an index, which is small, and parses it at the end; the counterpart of `HeaderParser`."""

    def __init__(self) -> None:
        self._raw = bytearray()

    def feed(self, block: bytes | bytearray | memoryview) -> None:
        """Take the next bytes, and refuse an index at the byte that makes it too large."""
        room = MAX_INDEX_BYTES + 1 - len(self._raw)
        self._raw += memoryview(block)[:room]
        if len(self._raw) > MAX_INDEX_BYTES:
            parse_index(self._raw)

    def finish(self, total_bytes: int) -> ShardIndex:  # noqa: ARG002 - as HeaderParser has it
        return parse_index(self._raw)


class Upload:
    """A file that is invisible until `commit`; a block that ends without it leaves nothing."""

    def __init__(
        self,
        file: AtomicFile,
        publish: Callable[[AtomicFile, ShardIndex | None], bool],
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
        self._content: Header | ShardIndex | None = None
        self._parser = IndexParser() if is_index(self.name) else HeaderParser(content_bytes=content_bytes)

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

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Take the next block; blocks of a few MiB keep the cost of a call small."""
        if self._file.size_bytes + len(block) > self._limit_bytes:
            raise TooLarge(self._limit_bytes)
        self._parser.feed(block)
        with disk_errors():
            self._file.write(block)

    def finish(self) -> Header | ShardIndex:
        """Check that the file is complete and has the expected digest; no bytes may follow."""
        if self._content is None:
            info, expected = self._file.info, self._expected_sha256
            if expected is not None and info.sha256 != expected.hex():
                raise DigestMismatch(expected=expected.hex(), actual=info.sha256)
            self._content = self._parser.finish(info.size_bytes)
        return self._content

    def commit(self) -> StoredFile:
        """Finish the file, make it durable, and publish it."""
        content = self.finish()
        # Before the publication, which holds the checkpoint's lock.
        with disk_errors():
            self._file.seal()
        created = self._publish(self._file, content if isinstance(content, ShardIndex) else None)
        self.abort()
        return StoredFile(self._file.info, created)

    def abort(self) -> None:
        """Remove the temporary file, if it is not published."""
        self._file.abort()
