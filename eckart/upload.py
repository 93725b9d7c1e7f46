"""Upload: send the files of a checkpoint, streamed from disk."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from eckart.errors import InputError, ServiceError
from eckart.http import Call, Connection, parse, repr_digest
from eckart.types import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from eckart.checkpoint import CheckpointFiles
    from eckart.progress import ProgressCallback

BLOCK_BYTES = 1 << 20
# The service flushes and checks a file before it answers; a slow disk needs a second for this many bytes.
SLOW_DISK_BYTES_PER_S = 20_000_000
NAME_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to send, and where it begins in the total."""

    path: Path
    size_bytes: int
    sha256: str
    offset_bytes: int
    total_bytes: int


def upload(
    connection: Connection, source: CheckpointFiles, checkpoint: str | None, progress: ProgressCallback
) -> str:
    """Send what the service does not have yet; return the id of the checkpoint."""
    source.companions.check_total()
    files = _hashed(source.paths, progress)
    name = checkpoint or content_id(source.name, files)
    stored = _stored(connection, name)
    for file in files:
        if stored.get(file.path.name) == file.sha256:
            done = file.offset_bytes + file.size_bytes
            progress(done, file.total_bytes, f"already there: {file.path.name}")
        else:
            _send(connection, name, file, progress)
    return name


def content_id(name: str, files: Sequence[LocalFile]) -> str:
    """Derive an id from the bytes: the same files give the same id, other files another."""
    digest = hashlib.sha256("".join(f"{file.path.name} {file.sha256}\n" for file in files).encode())
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:NAME_CHARACTERS]
    return f"{plain or 'checkpoint'}-{digest.hexdigest()[:16]}"


def _hashed(paths: Sequence[Path], progress: ProgressCallback) -> list[LocalFile]:
    total_bytes = sum(path.stat().st_size for path in paths)
    files: list[LocalFile] = []
    done = 0
    for path in paths:
        sha256, begin = hashlib.sha256(), done
        with path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                sha256.update(block)
                done += len(block)
                progress(done, total_bytes, f"hash {path.name}")
        files.append(LocalFile(path, done - begin, sha256.hexdigest(), begin, total_bytes))
    return files


def _stored(connection: Connection, name: str) -> dict[str, str]:
    """Return the digests of the files that the service already has under that id."""
    try:
        # The files are wanted, not the tensors.
        call = Call("GET", f"/v1/checkpoints/{quote(name, safe='')}", params={"limit": 1})
        answer = connection.request(call)
    except ServiceError as error:
        if error.status == 404:
            return {}
        raise
    return {file.name: file.sha256 for file in parse(Checkpoint, answer).files}


def _send(connection: Connection, name: str, file: LocalFile, progress: ProgressCallback) -> None:
    def content() -> Iterator[bytes]:
        sent = 0
        with file.path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                sent += len(block)
                if sent > file.size_bytes:
                    break
                yield block
                progress(file.offset_bytes + sent, file.total_bytes, f"upload {file.path.name}")
        if sent != file.size_bytes:
            raise InputError(f"{file.path} changed while it was being sent")

    connection.request(
        Call(
            "PUT",
            f"/v1/checkpoints/{quote(name, safe='')}/{file.path.name}",
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(file.size_bytes),
                "Repr-Digest": repr_digest(file.sha256),
            },
            content=content,
            answer_s=file.size_bytes / SLOW_DISK_BYTES_PER_S,
        )
    )
