"""Whether input files still have the bytes that their digests are of, checked once before a job's work.

All files are read once for that. What is read later is held to what they were then (`FileState`), so that
nothing of other bytes gets into a result, or under a wrong digest into the cache.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from schemas.checkpoint import FileInfo
from schemas.format.errors import CheckpointError
from schemas.format.files import CheckpointFiles
from worker.checkpoint.reader import FileState, file_state

BLOCK_BYTES = 16 << 20
# A disk is rarely faster than this many processors that hash.
THREADS = 4


def check_input(
    inputs: Iterable[tuple[CheckpointFiles, Iterable[FileInfo]]], *, check_canceled: Callable[[], None]
) -> Mapping[Path, FileState]:
    """Hash all files of these checkpoints, and return what they are now.

    Raises
    ------
    CheckpointError
        With fault ``file-changed``, if a file has other bytes or is gone.
    """
    files = [(checkpoint.path(info.name), info) for checkpoint, infos in inputs for info in infos]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="hash") as threads:
        found = [threads.submit(_check, path, info, check_canceled) for path, info in files]
    return {path: each.result() for (path, _), each in zip(files, found, strict=True)}


def _check(path: Path, info: FileInfo, check_canceled: Callable[[], None]) -> FileState:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(BLOCK_BYTES, max(1, info.size_bytes))))
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise CheckpointError("file-changed", f"The file {info.name} was deleted.") from None
    try:
        state = file_state(descriptor)
        while count := os.readv(descriptor, [buffer]):
            check_canceled()
            digest.update(buffer[:count])
        if digest.hexdigest() != info.sha256 or file_state(descriptor) != state:
            raise CheckpointError(
                "file-changed",
                f"The file {info.name} has other bytes than those that were stored: its SHA-256 was "
                f"{info.sha256} and is {digest.hexdigest()} now.",
            )
    finally:
        os.close(descriptor)
    return state
