"""The digests of a result's files, in a small file of their own: a result is served without its report."""

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
DIGESTS_NAME = ".files.json"
DIGESTS = TypeAdapter(dict[str, str])


class _Output(PersistedModel):
    files: tuple[FileInfo, ...]


class _Report(PersistedModel):
    """What a report of any release says of its files."""

    output: _Output


def write_digests(directory: Path, files: Iterable[FileInfo]) -> None:
    """Write the digests of a result that is complete but for them, its report included."""
    digests = {file.name: file.sha256 for file in files} | {REPORT_NAME: _sha256_of(directory / REPORT_NAME)}
    write_atomic(directory / DIGESTS_NAME, DIGESTS.dump_json(digests, indent=1))


def read_digests(directory: Path) -> dict[str, str]:
    """Return the digest of each file of a result, the report's last, or raise `UnreadableRecord`."""
    try:
        return _written_digests(directory) or _reported_digests(directory)
    except ValidationError as error:
        raise UnreadableRecord from error


def _written_digests(directory: Path) -> dict[str, str] | None:
    try:
        return DIGESTS.validate_json((directory / DIGESTS_NAME).read_bytes())
    except (FileNotFoundError, ValidationError):
        # Of an earlier release, or damaged; the report says it too.
        return None


def _reported_digests(directory: Path) -> dict[str, str]:
    text = (directory / REPORT_NAME).read_bytes()
    listed = {file.name: file.sha256 for file in _Report.model_validate_json(text).output.files}
    return {**listed, REPORT_NAME: hashlib.sha256(text).hexdigest()}


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
