"""Sizes and digests of a result's files, in a small file of their own: it is served without its report."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from schemas.base import PersistedModel
from schemas.checkpoint import FileInfo
from schemas.report import REPORT_NAME
from state.errors import UnreadableRecord
from state.files import write_atomic

# No file of a result has a name that starts with a dot.
CONTENTS_NAME = ".files.json"


class ResultContent(PersistedModel):
    """What is recorded of one file of a result; earlier releases recorded a digest alone."""

    sha256: str
    size_bytes: int | None


NOTHING = ResultContent(sha256="", size_bytes=None)
CONTENTS = TypeAdapter(dict[str, ResultContent | str])


class _Output(PersistedModel):
    files: tuple[FileInfo, ...]


class _Report(PersistedModel):
    """What a report of any release says of its files."""

    output: _Output


def write_contents(directory: Path, files: Iterable[FileInfo]) -> None:
    """Write the contents of a result that is complete but for them, its report included."""
    contents: dict[str, ResultContent | str] = {file.name: _content(file) for file in files}
    contents[REPORT_NAME] = _content_of((directory / REPORT_NAME).read_bytes())
    write_atomic(directory / CONTENTS_NAME, CONTENTS.dump_json(contents, indent=1))


def read_contents(directory: Path) -> dict[str, ResultContent]:
    """Return what is recorded of each file of a result, the report last, or raise `UnreadableRecord`."""
    written = _written_contents(directory)
    if written and all(content.size_bytes is not None for content in written.values()):
        return written
    try:
        reported = _reported_contents(directory)
    except (FileNotFoundError, ValidationError) as error:
        if written:
            return written
        if isinstance(error, FileNotFoundError):
            raise
        raise UnreadableRecord from error
    if written and written.get(REPORT_NAME, NOTHING).sha256 != reported[REPORT_NAME].sha256:
        return written  # Of a report that is not the recorded one, nothing is taken.
    return reported


def _written_contents(directory: Path) -> dict[str, ResultContent] | None:
    try:
        found = CONTENTS.validate_json((directory / CONTENTS_NAME).read_bytes())
    except (FileNotFoundError, ValidationError):
        # Of an earlier release, or damaged; the report says it too.
        return None
    return {
        name: ResultContent(sha256=content, size_bytes=None) if isinstance(content, str) else content
        for name, content in found.items()
    }


def _reported_contents(directory: Path) -> dict[str, ResultContent]:
    text = (directory / REPORT_NAME).read_bytes()
    listed = {file.name: _content(file) for file in _Report.model_validate_json(text).output.files}
    return {**listed, REPORT_NAME: _content_of(text)}


def _content(file: FileInfo) -> ResultContent:
    return ResultContent(sha256=file.sha256, size_bytes=file.size_bytes)


def _content_of(text: bytes) -> ResultContent:
    return ResultContent(sha256=hashlib.sha256(text).hexdigest(), size_bytes=len(text))
