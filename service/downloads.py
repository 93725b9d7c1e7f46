"""Files on their way out: Starlette's FileResponse with a content's own tag and problems for refusals."""

from starlette.requests import Request
from starlette.responses import FileResponse, MalformedRangeHeader, RangeNotSatisfiable, Response

from service import errors
from service.digests import digest_headers, is_known
from service.resultfiles import ResultFile

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
