"""Receiving one file: limited, counted, hashed, checked and written in one pass."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from schemas.checkpoint import FileInfo
from schemas.format.companion import CONFIG_NAME, parse_config
from schemas.format.header import Header
from schemas.format.header_stream import HeaderParser
from schemas.format.index import MAX_INDEX_BYTES, ShardIndex, parse_index
from schemas.format.names import is_companion, is_index
from state.errors import DigestMismatch, TooLarge
from state.files import AtomicFile, disk_errors

# What a file holds, as far as it is parsed; a companion has nothing that others must agree with.
Content = Header | ShardIndex | None


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
        self._content: Content = None
        self._is_finished = False
        self._parser = _parser(self.name, content_bytes)

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
        self._parser.feed(block)
        with disk_errors():
            self._file.write(block)

    def finish(self) -> Content:
        """Check that the file is complete and has the expected digest; no bytes may follow."""
        if not self._is_finished:
            info, expected = self._file.info, self._expected_sha256
            if expected is not None and info.sha256 != expected.hex():
                raise DigestMismatch(expected=expected.hex(), actual=info.sha256)
            self._content = self._parser.finish(info.size_bytes)
            self._is_finished = True
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


def too_large(name: str, limit_bytes: int) -> TooLarge:
    """Return the refusal of a file; only a companion has a limit of its own, apart from the body's."""
    return TooLarge(limit_bytes, f"The file {name}") if is_companion(name) else TooLarge(limit_bytes)


def _parser(name: str, content_bytes: int | None) -> IndexParser | ConfigParser | AnyContent | HeaderParser:
    if is_index(name):
        return IndexParser()
    if name == CONFIG_NAME:
        return ConfigParser()
    return AnyContent() if is_companion(name) else HeaderParser(content_bytes=content_bytes)
