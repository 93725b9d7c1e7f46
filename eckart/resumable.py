"""Upload by tus 1.0.0: after a broken line, or a restart of either side, it goes on where it stopped."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from eckart.errors import AnswerError, EckartError, ProblemError, ServiceError
from eckart.http import Backoff, Call, Connection
from eckart.unfinished import UnfinishedUpload

if TYPE_CHECKING:
    import httpx

    from eckart.local_file import LocalFile
    from eckart.progress import ProgressCallback

PATH = "/v1/uploads"
VERSION = {"Tus-Resumable": "1.0.0"}
# Smaller files are sent by PUT: one request instead of several.
RESUMABLE_ABOVE_BYTES = 64 << 20
# A proxy that passes on only whole requests loses no more than one.
REQUEST_BYTES = 256 << 20
# The service flushes and checks a file before it answers; a slow disk needs a second for this many bytes.
SLOW_DISK_BYTES_PER_S = 20_000_000
OFFSET_MISMATCH = "urn:eckart:problem:offset-mismatch"
# For so long the service may take a broken connection for a silent one, and lock the upload for others.
LOCKED_S = 60.0
# The service has no such address.
UNKNOWN_ADDRESS = frozenset({404, 405})


def send_resumable(
    connection: Connection, checkpoint: str, file: LocalFile, progress: ProgressCallback
) -> bool:
    """Send a file; return False, without having sent anything, where the service has no resumable uploads."""
    metadata = _metadata(checkpoint, file)
    unfinished = UnfinishedUpload(connection.base_url, checkpoint, file)
    again = True
    begun = _found(connection, unfinished.address, file, metadata) or _begin(connection, file, metadata)
    while begun is not None:
        unfinished.keep(begun.address)
        try:
            _send_all(connection, begun, file, progress)
        except ServiceError as error:
            if not error.passing:
                unfinished.forget()
            # It has expired meanwhile, or it was refused and the answer got lost: the next try hears it.
            if error.status != 404 or not again:
                raise
            again = False
            begun = _begin(connection, file, metadata)
        else:
            unfinished.forget()
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Begun:
    """An upload that the service knows, and how much of it has arrived."""

    address: str
    offset: int = 0


def _send_all(connection: Connection, begun: _Begun, file: LocalFile, progress: ProgressCallback) -> None:
    address, offset = begun.address, begun.offset
    backoff = Backoff(connection.patience_s + LOCKED_S)
    while offset < file.size_bytes:
        before = offset
        try:
            offset = _append(connection, address, file, offset, progress)
        except EckartError as error:
            if _goes_on(error):
                time.sleep(backoff.next_s(error))
            else:
                connection.pause_or_raise(error, backoff)
            offset = _offset_of(connection.request(Call("HEAD", address, headers=VERSION)))
            progress(file.offset_bytes + offset, file.total_bytes, f"upload {file.path.name}")
        if offset > before:
            backoff.reset()


def _metadata(checkpoint: str, file: LocalFile) -> str:
    told = {"checkpoint": checkpoint, "filename": file.path.name, "sha256": file.sha256}
    return ",".join(f"{key} {base64.b64encode(text.encode()).decode()}" for key, text in told.items())


def _found(connection: Connection, address: str | None, file: LocalFile, metadata: str) -> _Begun | None:
    """Return the upload that an earlier client began, if the service has it and it is of this file."""
    if address is None:
        return None
    try:
        answer = connection.request(Call("HEAD", address, headers=VERSION))
    except ServiceError as error:
        if error.passing:
            raise
        return None
    told = (answer.headers.get("Upload-Length"), answer.headers.get("Upload-Metadata"))
    if told != (str(file.size_bytes), metadata):
        return None
    return _Begun(address, _offset_of(answer))


def _begin(connection: Connection, file: LocalFile, metadata: str) -> _Begun | None:
    """Announce the file; None where the service has no such address."""
    headers = {**VERSION, "Upload-Length": str(file.size_bytes), "Upload-Metadata": metadata}
    try:
        answer = connection.request(Call("POST", PATH, headers=headers))
    except ServiceError as error:
        if error.status in UNKNOWN_ADDRESS:
            return None
        raise
    # Only the id counts: a proxy may serve the path under another, and no answer leads to another host.
    return _Begun(f"{PATH}/{answer.headers.get('Location', '').rpartition('/')[2]}")


def _append(
    connection: Connection, address: str, file: LocalFile, offset: int, progress: ProgressCallback
) -> int:
    """Send the next bytes in one request; return how many have arrived then."""
    end = min(file.size_bytes, offset + REQUEST_BYTES)
    # After the last byte a service that was started again reads the whole file once more.
    slow_bytes = file.size_bytes if end == file.size_bytes else end - offset
    call = Call(
        "PATCH",
        address,
        headers={
            **VERSION,
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(end - offset),
            "Upload-Offset": str(offset),
        },
        content=partial(file.blocks, offset, end, progress),
        answer_s=slow_bytes / SLOW_DISK_BYTES_PER_S,
    )
    with connection.stream(call) as response:
        response.read()
        if (arrived := _offset_of(response)) != end:
            raise _bad_answer(response, f"with an Upload-Offset of {arrived} instead of {end}")
    return end


def _offset_of(response: httpx.Response) -> int:
    field = response.headers.get("Upload-Offset", "")
    if not (field.isascii() and field.isdigit()):
        raise _bad_answer(response, "without an Upload-Offset")
    return int(field)


def _bad_answer(response: httpx.Response, how: str) -> AnswerError:
    what = f"{response.request.method} {response.request.url} was answered {how}"
    return AnswerError(what, status=response.status_code, retry_after_s=None)


def _goes_on(error: EckartError) -> bool:
    """Whether an upload goes on after this refusal of one request, from the offset that the service has."""
    if isinstance(error, ProblemError) and error.problem.type == OFFSET_MISMATCH:
        return True
    return isinstance(error, ServiceError) and error.status in {408, 423}
