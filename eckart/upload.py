"""Upload: send the files of a checkpoint, streamed from disk."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from eckart import resumable
from eckart.errors import ServiceError
from eckart.http import Call, Connection, parse, repr_digest
from eckart.local_file import BLOCK_BYTES, LocalFile
from eckart.types import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from eckart.checkpoint import CheckpointFiles
    from eckart.progress import ProgressCallback

NAME_CHARACTERS = 100


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
    if file.size_bytes > resumable.RESUMABLE_ABOVE_BYTES and resumable.send_resumable(
        connection, name, file, progress
    ):
        return
    connection.request(
        Call(
            "PUT",
            f"/v1/checkpoints/{quote(name, safe='')}/{file.path.name}",
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(file.size_bytes),
                "Repr-Digest": repr_digest(file.sha256),
            },
            content=partial(file.blocks, 0, file.size_bytes, progress),
            answer_s=file.size_bytes / resumable.SLOW_DISK_BYTES_PER_S,
        )
    )
