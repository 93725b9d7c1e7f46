"""The files of a job's result, found and sent: Range, HEAD, a strong ETag and Repr-Digest."""

import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import FileResponse, MalformedRangeHeader, RangeNotSatisfiable, Response

from schemas.job import UNFINISHED
from schemas.problem import ProblemKind
from service.dependencies import JobId, RootPath, Services, ServicesDep, WaitForEnd
from service.errors import ProblemError
from service.headers import content_headers, etag_matches
from service.jobs.status import RETRY_AFTER_S, job_path, wait_for_end
from state.data_dir import DataDir
from state.errors import JobNotFound
from state.jobs.records import JobRecord
from state.jobs.result_files import ResultContent, read_contents

MEDIA_TYPES = {".json": "application/json", ".safetensors": "application/octet-stream"}

log = logging.getLogger("eckart.service")


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One file of a result."""

    path: Path
    sha256: str
    status: os.stat_result


class Download(FileResponse):
    """Starlette's response with our problem for a range outside the file."""

    chunk_size = 2**20

    @classmethod
    def parse_ranges(cls, asked: str, size_bytes: int) -> list[tuple[int, int]]:
        """Return the ranges of a Range header, each with the byte after its last; none if it is malformed."""
        return cls._parse_range_header(asked, size_bytes)

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []  # RFC 9110, 14.2: a malformed range is ignored.
        except RangeNotSatisfiable as refused:
            headers = {"Content-Range": f"bytes */{refused.max_size}"}
            raise ProblemError(ProblemKind.RANGE_NOT_SATISFIABLE, headers=headers) from None


async def succeeded_job(
    request: Request, services: ServicesDep, root_path: RootPath, job_id: JobId, wait: WaitForEnd = 0
) -> JobRecord:
    """Return the record of a job that has a result."""
    view = await wait_for_end(request, services, job_id, wait_s=wait)
    state = view.record.state
    if state in UNFINISHED:
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        raise ProblemError(ProblemKind.NO_RESULT, values={"state": state}, headers=headers)
    if state != "succeeded":
        values = {"state": state, "job": job_path(job_id, root_path)}
        raise ProblemError(ProblemKind.ENDED_WITHOUT_RESULT, values=values)
    return view.record


SucceededJob = Annotated[JobRecord, Depends(succeeded_job)]


def result_file(services: Services, record: JobRecord, name: str) -> ResultFile:
    """Find the report, or a file that the report lists; refuse one that is not as long as it was written."""
    directory = _directory(services, record)
    try:
        content = _contents(directory).get(name)
        if content is None:
            raise ProblemError(ProblemKind.FILE_NOT_FOUND)
        status = (directory / name).stat()
    except FileNotFoundError:
        # A result is only ever deleted with its job, so the job was deleted after its record was read.
        raise JobNotFound from None
    if content.size_bytes not in {None, status.st_size}:
        log.error("%s has %d bytes instead of %s", directory / name, status.st_size, content.size_bytes)
        values = {"file": name, "found_bytes": status.st_size, "recorded_bytes": content.size_bytes}
        raise ProblemError(ProblemKind.RESULT_DAMAGED, values=values)
    return ResultFile(directory / name, content.sha256, status)


def result_files(services: Services, record: JobRecord) -> tuple[ResultFile, ...]:
    """Find all files of a result, the report last."""
    directory = _directory(services, record)
    try:
        names = tuple(_contents(directory))
    except FileNotFoundError:
        raise JobNotFound from None
    return tuple(result_file(services, record, name) for name in names)


def _directory(services: Services, record: JobRecord) -> Path:
    assert record.result_fence is not None
    return DataDir(services.settings.data_dir).result(record.id, record.result_fence)


@lru_cache(maxsize=256)
def _contents(directory: Path) -> dict[str, ResultContent]:
    """Read what is recorded by file name; cached, for a published result never changes."""
    return read_contents(directory)


def download(file: ResultFile, if_none_match: str | None) -> Response:
    """Send a file, or 304 if the client has it."""
    headers = content_headers(file.sha256)
    if etag_matches(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    return Download(
        file.path,
        filename=file.path.name,
        media_type=MEDIA_TYPES.get(file.path.suffix, "application/octet-stream"),
        headers=headers,
        stat_result=file.status,
    )
