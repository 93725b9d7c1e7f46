"""Fetching a job's files: resumed where they broke off, checked against the report, published by rename."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from eckart.connection import Call, Connection, parse
from eckart.digest import sha256_of
from eckart.errors import AnswerError, DigestError, EckartError, InputError
from eckart.part import PartFile
from eckart.patience import Patience
from schemas.format.index import FILE_NAME
from schemas.report import REPORT_NAME, Report

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from eckart.progress import Progress
    from schemas.checkpoint import FileInfo


def download(connection: Connection, job_id: str, into: Path, progress: Progress) -> tuple[Path, ...]:
    """Fetch every result file and, last, the report; nothing that is already there is overwritten."""
    base = f"/v1/jobs/{quote(job_id, safe='')}"
    answer = connection.ask(Call("GET", f"{base}/report", headers={"Accept": "application/json"}))
    report = parse(Report, answer)
    into.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256(answer.content).hexdigest()
    have_report = _is_there(into / REPORT_NAME, sha256)
    fetches = _fetches(base, report, into)
    missing = [fetch for fetch in fetches if not _is_there(fetch.target, fetch.file.sha256)]
    for fetch in missing:
        _fetch(connection, fetch, progress)
    if not have_report:
        with PartFile(into / f".{REPORT_NAME}.{sha256[:16]}.part") as part:
            part.restart()
            part.write(answer.content)
            part.publish(into / REPORT_NAME)
    return (*(fetch.target for fetch in fetches), into / REPORT_NAME)


@dataclass(frozen=True, slots=True)
class Fetch:
    """A file to be fetched, and where it begins among all that are."""

    url: str
    file: FileInfo
    target: Path
    offset_bytes: int
    total_bytes: int

    @property
    def part(self) -> Path:
        """Where it grows; named after its digest, so that no other file's beginning is taken for its own."""
        return self.target.with_name(f".{self.target.name}.{self.file.sha256[:16]}.part")


def _fetches(base: str, report: Report, into: Path) -> list[Fetch]:
    fetches: list[Fetch] = []
    offset_bytes = 0
    for file in report.output.files:
        # The name comes from outside and becomes a path here.
        if FILE_NAME.fullmatch(file.name) is None or re.fullmatch("[0-9a-f]{64}", file.sha256) is None:
            raise AnswerError(
                f"the report names a file {file.name!r} that is no checkpoint's; nothing was written",
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
    raise InputError(f"{target} is there already, with other bytes; choose another directory")


def _fetch(connection: Connection, fetch: Fetch, progress: Progress) -> None:
    with PartFile(fetch.part) as part:
        resumed = part.size_bytes > 0
        _receive_all(connection, fetch, part, progress)
        if resumed and part.sha256 != fetch.file.sha256:
            # What lay there was not the beginning of this file; it does not count against the service.
            part.restart()
            _receive_all(connection, fetch, part, progress)
        if part.sha256 != fetch.file.sha256:
            part.restart()
            raise DigestError(f"{fetch.file.name} arrived with another SHA-256 than the report gives")
        part.publish(fetch.target)


def _receive_all(connection: Connection, fetch: Fetch, part: PartFile, progress: Progress) -> None:
    patience = Patience(connection.patience_s)
    while part.size_bytes < fetch.file.size_bytes:
        before = part.size_bytes
        try:
            _receive(connection, fetch, part, progress)
        except EckartError as error:
            if part.size_bytes > before:
                patience.renew()
            connection.pause_or_raise(error, patience)


def _receive(connection: Connection, fetch: Fetch, part: PartFile, progress: Progress) -> None:
    headers = {"Range": f"bytes={part.size_bytes}-"} if part.size_bytes else {}
    with connection.open(Call("GET", fetch.url, headers=headers)) as response:
        _check_answer(response, fetch, part)
        for block in response.iter_raw():
            if part.size_bytes + len(block) > fetch.file.size_bytes:
                raise _other_file(fetch)
            part.write(block)
            done = fetch.offset_bytes + part.size_bytes
            progress(done, fetch.total_bytes, f"download {fetch.file.name}")
    if part.size_bytes < fetch.file.size_bytes:
        raise _other_file(fetch)


def _check_answer(response: httpx.Response, fetch: Fetch, part: PartFile) -> None:
    promised = sha256_of(response.headers.get("Repr-Digest"))
    if promised not in {None, fetch.file.sha256}:
        raise _other_file(fetch)
    if response.status_code == 200:
        part.restart()  # it knows no ranges, and sends the whole file
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {part.size_bytes}-"):
        raise _other_file(fetch)


def _other_file(fetch: Fetch) -> DigestError:
    return DigestError(f"the service sent something else than the {fetch.file.name} that the report names")
