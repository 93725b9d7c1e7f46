"""Finding the files that a job has made."""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, MalformedRangeHeader, RangeNotSatisfiable, Response

from schemas.report import REPORT_NAME, Report
from service import errors
from service.dependencies import Services
from service.headers import digest_headers, is_known
from state.data_dir import DataDir
from state.records import JobRecord

ADVICE = {
    "queued": "The job is queued; its result exists once it has succeeded. Ask again later.",
    "running": "The job is running; its result exists once it has succeeded. Ask again later.",
    "failed": "The job is failed, so it has no result; GET the job, its error says why.",
    "canceled": "The job is canceled, so it has no result; make a new one.",
}


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One file of a result."""

    path: Path
    sha256: str
    status: os.stat_result


def finished_job(services: Services, job_id: str) -> JobRecord:
    """Find a job that has a result."""
    record = services.jobs.get(job_id)
    if record.state in ADVICE:
        headers = {"Retry-After": "2"} if record.state in {"queued", "running"} else {}
        raise errors.NoResult(ADVICE[record.state], headers=headers)
    return record


def result_file(services: Services, record: JobRecord, name: str) -> ResultFile:
    """Find a file that the report names, or the report itself."""
    assert record.result_fence is not None
    directory = DataDir(services.settings.data_dir).result(record.id, record.result_fence)
    try:
        sha256 = _digests(directory).get(name)
        if sha256 is None:
            raise errors.FileNotFound
        return ResultFile(directory / name, sha256, (directory / name).stat())
    except FileNotFoundError:
        # A result only ever goes with its job, which was deleted after its record was read.
        raise errors.JobNotFound from None


@lru_cache(maxsize=256)
def _digests(directory: Path) -> dict[str, str]:
    """Digests by name; a published result never changes."""
    text = (directory / REPORT_NAME).read_bytes()
    report = Report.model_validate_json(text)
    listed = {file.name: file.sha256 for file in report.output.files}
    return {**listed, REPORT_NAME: hashlib.sha256(text).hexdigest()}


MEDIA_TYPES = {".json": "application/json", ".safetensors": "application/octet-stream"}


class Download(FileResponse):
    """One immutable file: Range, HEAD, a strong ETag and Repr-Digest."""

    chunk_size = 2**20

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []  # RFC 9110 §14.2: a range that makes no sense is ignored.
        except RangeNotSatisfiable as refused:
            raise errors.RangeNotSatisfiable(
                headers={"Content-Range": f"bytes */{refused.max_size}"}
            ) from None


def download(file: ResultFile, if_none_match: str | None) -> Response:
    """Send a file, or 304 where the client has it."""
    headers = digest_headers(file.sha256)
    if is_known(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    media_type = MEDIA_TYPES.get(file.path.suffix, "application/octet-stream")
    return Download(
        file.path,
        filename=file.path.name,
        media_type=media_type,
        headers=headers,
        stat_result=file.status,
    )


def require_json_accepted(request: Request) -> None:
    """Refuse a client that takes no JSON at all."""
    accepted = (part.partition(";") for part in request.headers.get("accept", "*/*").split(","))
    wanted = {kind.strip().lower() for kind, _, options in accepted if options.replace(" ", "") != "q=0"}
    if not wanted & {"application/json", "application/*", "*/*"}:
        raise errors.NotAcceptable
