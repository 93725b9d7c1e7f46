"""Download: fetch the files of a job, resume broken transfers, check every digest, publish by rename."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from eckart.checkpoint import FILE_NAME
from eckart.companions import REPORT_NAME, is_companion
from eckart.errors import AnswerError, DigestError, EckartError, InputError
from eckart.http import Backoff, Call, Connection, parse, sha256_of
from eckart.types import Report

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import httpx

    from eckart.progress import ProgressCallback
    from eckart.types import FileInfo

BLOCK_BYTES = 1 << 20


def download(connection: Connection, job_id: str, into: Path, progress: ProgressCallback) -> tuple[Path, ...]:
    """Fetch every result file and then the report; never overwrite a file with other bytes."""
    answer = request_report(connection, job_id)
    report = parse(Report, answer)
    into.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256(answer.content).hexdigest()
    have_report = _is_there(into / REPORT_NAME, sha256)
    fetches = _fetches(job_path(job_id), report, into)
    missing = [fetch for fetch in fetches if not _is_there(fetch.target, fetch.file.sha256)]
    for fetch in missing:
        _fetch(connection, fetch, progress)
    if not have_report:
        with AtomicFile(into / f".{REPORT_NAME}.{sha256[:16]}.part") as part:
            part.restart()
            part.write(answer.content)
            part.publish(into / REPORT_NAME)
    return (*(fetch.target for fetch in fetches), into / REPORT_NAME)


def job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def request_report(connection: Connection, job_id: str) -> httpx.Response:
    headers = {"Accept": "application/json"}
    return connection.request(Call("GET", f"{job_path(job_id)}/report", headers=headers))


class AtomicFile:
    """A file under a temporary name until it is whole. A broken download leaves it there, to be resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._stream = path.open("r+b")
        self._begin()
        while block := self._stream.read(BLOCK_BYTES):
            self._count(block)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def write(self, block: bytes) -> None:
        self._stream.write(block)
        self._count(block)

    def restart(self) -> None:
        """Discard what has arrived."""
        self._stream.seek(0)
        self._stream.truncate()
        self._begin()

    def publish(self, target: Path) -> None:
        """Rename the whole file."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self.path.replace(target)

    def _begin(self) -> None:
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()

    def _count(self, block: bytes) -> None:
        self.size_bytes += len(block)
        self._sha256.update(block)


@dataclass(frozen=True, slots=True)
class Fetch:
    """A file to fetch, and where it begins in the total."""

    url: str
    file: FileInfo
    target: Path
    offset_bytes: int
    total_bytes: int

    @property
    def part(self) -> Path:
        """Its temporary name; the digest in it keeps the beginnings of different files apart."""
        return self.target.with_name(f".{self.target.name}.{self.file.sha256[:16]}.part")


def _fetches(base: str, report: Report, into: Path) -> list[Fetch]:
    fetches: list[Fetch] = []
    offset_bytes = 0
    for file in report.output.files:
        # The name comes from the service and becomes a path here.
        is_name = FILE_NAME.fullmatch(file.name) is not None or is_companion(file.name)
        if not is_name or re.fullmatch("[0-9a-f]{64}", file.sha256) is None:
            raise AnswerError(
                f"{file.name!r} in the report cannot be the name of a result's file; nothing was written",
                status=200,
                retry_after_s=None,
            )
        url = f"{base}/files/{file.name}"
        fetches.append(Fetch(url, file, into / file.name, offset_bytes, report.output.bytes))
        offset_bytes += file.size_bytes
    return fetches


def _is_there(target: Path, sha256: str) -> bool:
    if not target.exists():
        return False
    with target.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() == sha256:
            return True
    raise InputError(f"{target} exists with other bytes; choose another directory")


def _fetch(connection: Connection, fetch: Fetch, progress: ProgressCallback) -> None:
    with AtomicFile(fetch.part) as part:
        resumed = part.size_bytes > 0
        _receive_all(connection, fetch, part, progress)
        if resumed and part.sha256 != fetch.file.sha256:
            # The part on disk was not the beginning of this file; the service is not to blame.
            part.restart()
            _receive_all(connection, fetch, part, progress)
        if part.sha256 != fetch.file.sha256:
            part.restart()
            raise DigestError(f"{fetch.file.name} arrived with a SHA-256 that is not the report's")
        part.publish(fetch.target)


def _receive_all(connection: Connection, fetch: Fetch, part: AtomicFile, progress: ProgressCallback) -> None:
    backoff = Backoff(connection.patience_s)
    while part.size_bytes < fetch.file.size_bytes:
        before = part.size_bytes
        try:
            _receive(connection, fetch, part, progress)
        except EckartError as error:
            if part.size_bytes > before:
                backoff.reset()
            connection.pause_or_raise(error, backoff)


def _receive(connection: Connection, fetch: Fetch, part: AtomicFile, progress: ProgressCallback) -> None:
    headers = {"Range": f"bytes={part.size_bytes}-"} if part.size_bytes else {}
    with connection.stream(Call("GET", fetch.url, headers=headers)) as response:
        _check_answer(response, fetch, part)
        for block in response.iter_raw():
            if part.size_bytes + len(block) > fetch.file.size_bytes:
                raise _other_file(fetch)
            part.write(block)
            done = fetch.offset_bytes + part.size_bytes
            progress(done, fetch.total_bytes, f"download {fetch.file.name}")
    if part.size_bytes < fetch.file.size_bytes:
        raise _other_file(fetch)


def _check_answer(response: httpx.Response, fetch: Fetch, part: AtomicFile) -> None:
    promised = sha256_of(response.headers.get("Repr-Digest"))
    if promised not in {None, fetch.file.sha256}:
        raise _other_file(fetch)
    if response.status_code == 200:
        part.restart()  # the service ignored the range and sends the whole file
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {part.size_bytes}-"):
        raise _other_file(fetch)


def _other_file(fetch: Fetch) -> DigestError:
    return DigestError(f"the service sent another file than the {fetch.file.name} that the report names")
