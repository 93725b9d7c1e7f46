"""All files of a result as one uncompressed tar: made while it is sent, with a size known before."""

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.headers import etag_matches
from service.jobs.results import Download, ResultFile

BLOCK_BYTES = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK_BYTES)
CHUNK_BYTES = 2**20
READABLE = 0o644


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes of the archive: given, or those of a file."""

    begin: int
    size_bytes: int
    content: bytes | Path


@dataclass(frozen=True, slots=True)
class Archive:
    """The pieces of an archive; the same files and time give the same bytes."""

    pieces: tuple[Piece, ...]
    size_bytes: int
    etag: str

    def read(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `begin` to before `end`."""
        for piece in self.pieces:
            first = max(begin - piece.begin, 0)
            last = min(end - piece.begin, piece.size_bytes)
            if first >= last:
                continue
            if isinstance(piece.content, bytes):
                yield piece.content[first:last]
            else:
                yield from _read(piece.content, first, last)


def make_archive(files: Sequence[ResultFile], finished_at: str) -> Archive:
    """Lay out the archive of these files, all with one time."""
    time = int(datetime.fromisoformat(finished_at).timestamp())
    pieces: list[Piece] = []
    identity = hashlib.sha256()
    end = 0
    for file in files:
        size_bytes = file.status.st_size
        header = _header(file.path.name, size_bytes, time)
        identity.update(header + bytes.fromhex(file.sha256))
        padding = bytes(-size_bytes % BLOCK_BYTES)
        for length, content in ((len(header), header), (size_bytes, file.path), (len(padding), padding)):
            pieces.append(Piece(end, length, content))
            end += length
    pieces.append(Piece(end, len(END), END))
    return Archive(tuple(pieces), end + len(END), f'"{identity.hexdigest()}"')


def _header(name: str, size_bytes: int, time: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size_bytes, time, READABLE
    return info.tobuf(tarfile.PAX_FORMAT)


def _read(path: Path, begin: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(begin)
        left = end - begin
        while left and (block := stream.read(min(left, CHUNK_BYTES))):
            left -= len(block)
            yield block
    if left:
        raise OSError(f"{path} is shorter than when it was written")


def archive_response(
    request: Request, archive: Archive, filename: str, if_none_match: str | None
) -> Response:
    """Send the archive, a range of it, or 304; several ranges at once are answered with the whole."""
    headers = {
        "ETag": archive.etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{filename}"',
    }
    if etag_matches(archive.etag, if_none_match):
        return Response(status_code=304, headers=headers)
    begin, end = _range(request, archive)
    status = 200
    if end - begin < archive.size_bytes:
        status = 206
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{archive.size_bytes}"
    headers["Content-Length"] = str(end - begin)
    content = iter(()) if request.method == "HEAD" else archive.read(begin, end)
    return StreamingResponse(content, status, headers, media_type="application/x-tar")


def _range(request: Request, archive: Archive) -> tuple[int, int]:
    """Return the first byte to send, and the one after the last."""
    whole = (0, archive.size_bytes)
    asked = request.headers.get("range")
    if asked is None or request.headers.get("if-range", archive.etag) != archive.etag:
        return whole
    ranges = Download.parse_ranges(asked, archive.size_bytes)
    return ranges[0] if len(ranges) == 1 else whole
