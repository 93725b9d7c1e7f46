"""The multipart body of POST /v1/plans: the headers of a checkpoint's files, and a spec.

Nothing is written to disk. Every check of a header runs, except that the file is as long as its header says:
the data is absent, so the length is taken from the header.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from schemas.format.companion import CONFIG_NAME, MAX_CONFIG_BYTES, parse_config
from schemas.format.errors import CheckpointError
from schemas.format.files import CheckpointFiles
from schemas.format.header import MAX_HEADER_BYTES, Header
from schemas.format.header_stream import HeaderParser
from schemas.format.index import MAX_INDEX_BYTES, ShardIndex
from schemas.format.model_config import with_layers_of
from schemas.format.names import is_companion, is_index
from schemas.problem import ProblemKind
from schemas.spec import CompressionSpec
from service.dependencies import Services
from service.errors import ProblemError
from service.jobs.submission import missing_from_upload
from service.uploads.form import FileNames, required_spec, spec_part
from service.uploads.multipart import MultipartSink, Part, PartHead, TextPart
from state.checkpoints.consistency import AN_INDEX, check_together, missing_files
from state.checkpoints.parsed_header import HeaderSize
from state.checkpoints.store import MISSING_SHOWN
from state.uploads.upload import IndexParser


@dataclass(frozen=True, slots=True)
class HeaderContent:
    """What a body held."""

    files: CheckpointFiles
    spec: CompressionSpec
    warnings: tuple[str, ...]


class HeaderPart:
    """The first 8 + N bytes of a safetensors file, N being the length of its header."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._parser = HeaderParser()
        self._seen_bytes = 0

    def write(self, block: bytes | memoryview) -> None:
        with _named(self._name):
            self._parser.feed(block)
            self._seen_bytes += len(block)
            header = self._parser.header
            if header is not None and self._seen_bytes > header.data_start:
                raise CheckpointError(
                    "trailing-data",
                    f"The header ends at byte {header.data_start}, but more bytes follow. "
                    f"Send only the first {header.data_start} bytes of the file.",
                )

    def finish(self) -> Header:
        with _named(self._name):
            header = self._parser.header
            return self._parser.finish(self._seen_bytes if header is None else header.file_bytes)


class IndexPart:
    """A whole index."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._parser = IndexParser()
        self._index: ShardIndex | None = None

    def write(self, block: bytes | memoryview) -> None:
        with _named(self._name):
            self._parser.feed(block)

    def finish(self) -> ShardIndex:
        if self._index is None:
            with _named(self._name):
                self._index = self._parser.finish(0)
        return self._index


class HeaderParts:
    """Keeps the headers and the spec of a body in memory."""

    def __init__(self, *, spec_limit_bytes: int) -> None:
        self._names = FileNames()
        self._files: dict[str, HeaderPart | IndexPart] = {}
        self._spec = spec_part(limit_bytes=spec_limit_bytes)
        self._config: dict[str, Any] = {}

    def part(self, head: PartHead) -> Part:
        if head.name == "spec":
            return self._spec.part()
        if head.name != "header":
            raise ProblemError(
                ProblemKind.INVALID_MULTIPART,
                "A part has an unknown name; the parts are `header` and `spec`.",
            )
        name = self._names.add(head)
        if name == CONFIG_NAME:
            return TextPart(subject=name, limit_bytes=MAX_CONFIG_BYTES, receive=self._receive_config)
        if is_companion(name):
            raise ProblemError(
                ProblemKind.INVALID_REQUEST,
                f"A plan takes headers, an index and {CONFIG_NAME}, but no {name}; leave it out.",
            )
        part = IndexPart(name) if is_index(name) else HeaderPart(name)
        self._files[name] = part
        return part

    def commit(self) -> HeaderContent:
        """Return the content, if no file is missing and all are consistent."""
        if not self._files:
            raise ProblemError(
                ProblemKind.INVALID_MULTIPART,
                "The part `header` is missing; send the first 8 + N bytes of the safetensors file in it, "
                "N being the length of its header.",
            )
        spec = required_spec(self._spec)
        sent = {name: part.finish() for name, part in sorted(self._files.items())}
        check_together(sent, None)
        index = next((content for content in sent.values() if isinstance(content, ShardIndex)), None)
        headers = {name: content for name, content in sent.items() if isinstance(content, Header)}
        sum(map(HeaderSize.of, headers.values()), start=HeaderSize()).check()
        if missing := tuple(islice(missing_files(sent, index), MISSING_SHOWN)):
            unrelated = tuple(headers) if missing == (AN_INDEX,) else ()
            detail = missing_from_upload(missing, headers, unrelated=unrelated)
            raise ProblemError(ProblemKind.INVALID_CHECKPOINT, detail, fault="missing-files")
        files = CheckpointFiles(with_layers_of(self._config, headers), index, config=self._config)
        return HeaderContent(files, spec, self._names.warnings)

    def abort(self) -> None:
        """Do nothing: nothing was stored."""

    def _receive_config(self, raw: bytes) -> None:
        self._config = parse_config(raw)


def header_plan_limit_bytes(services: Services) -> int:
    """Return the most bytes of a whole body: the largest header, index, config.json and spec together."""
    return MAX_HEADER_BYTES + MAX_INDEX_BYTES + MAX_CONFIG_BYTES + services.settings.max_spec_bytes


def begin_header_plan(services: Services, boundary: bytes) -> MultipartSink[HeaderContent]:
    settings = services.settings
    parts = HeaderParts(spec_limit_bytes=settings.max_spec_bytes)
    return MultipartSink(parts, boundary=boundary, max_parts=settings.max_files + 2)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Prefix the detail of a CheckpointError with the file's name."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(error.fault, f"{name}: {error.detail}", error.pointer) from None
