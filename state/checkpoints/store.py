"""Stored checkpoints: a folder of published files, and a manifest with the size and digest of each.

A file counts as stored from the moment the manifest names it.
"""

import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from schemas.checkpoint import CheckpointList, FileInfo
from schemas.format.companion import companion_limit_bytes
from schemas.format.errors import CheckpointError
from schemas.format.files import CheckpointFiles
from schemas.format.index import ShardIndex
from schemas.format.model_config import stored_config, with_layers_of
from schemas.format.names import (
    CHECKPOINT_ID,
    is_companion,
    is_file_name,
    is_index,
    why_not,
)
from state.checkpoints.consistency import (
    AN_INDEX,
    check_addition,
    check_companions,
    check_header_sizes,
    missing_files,
    read_index,
    weight_files,
)
from state.checkpoints.listing import list_checkpoints
from state.checkpoints.manifest import read_manifest, write_manifest
from state.checkpoints.parsed_header import (
    HeaderSize,
    PackedHeader,
    kept_path,
    stored_header,
)
from state.checkpoints.timeline import stored_us
from state.checkpoints.upkeep import ONE_SHOT_ID, CheckpointUpkeep
from state.errors import CheckpointNotFound, ContentConflict
from state.files import (
    AtomicFile,
    Freed,
    disk_errors,
    make_directory,
    move_to_trash,
    purge,
)
from state.uploads.upload import Upload, too_large

log = logging.getLogger("eckart.state")

READ_ONLY = 0o444
Guard = Callable[[], AbstractContextManager[None]]
MISSING_SHOWN = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint(CheckpointFiles):
    """A checkpoint below the data directory, with the size and digest of each file and what is missing."""

    id: str
    files: tuple[FileInfo, ...]
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether a job can run on it."""
        return not self.missing

    @property
    def unrelated(self) -> tuple[str, ...]:
        """Files without an index that are not named like shards either."""
        return tuple(self.headers) if self.missing == (AN_INDEX,) else ()


class CheckpointStore(CheckpointUpkeep):
    """The checkpoints of one owner below the data directory, with the reaper's half from `upkeep`."""

    def of(self, owner: str) -> "CheckpointStore":
        """Return the checkpoints of another owner."""
        return CheckpointStore(self._paths.root, owner)

    def receive(
        self,
        checkpoint_id: str,
        name: str,
        *,
        content_bytes: int | None,
        limit_bytes: int,
        expected_sha256: bytes | None = None,
    ) -> Upload:
        """Begin a file, or refuse it by its name or length."""
        check_names(checkpoint_id, name)
        limit_bytes = checked_limit_bytes(name, content_bytes, limit_bytes=limit_bytes)

        with disk_errors():
            file = AtomicFile(
                self.file_path(checkpoint_id, name),
                parts=self._paths.parts,
                mode=READ_ONLY,
                reserve_bytes=content_bytes,
            )
        return self.upload_of(
            checkpoint_id,
            file,
            content_bytes=content_bytes,
            limit_bytes=limit_bytes,
            expected_sha256=expected_sha256,
        )

    def upload_of(
        self,
        checkpoint_id: str,
        file: AtomicFile,
        *,
        content_bytes: int | None,
        limit_bytes: int,
        expected_sha256: bytes | None,
    ) -> Upload:
        """Receive into a temporary file that is open."""
        return Upload(
            file,
            partial(self._publish, checkpoint_id),
            content_bytes=content_bytes,
            limit_bytes=limit_bytes,
            expected_sha256=expected_sha256,
        )

    def file_path(self, checkpoint_id: str, name: str) -> Path:
        """Return where a file lies, or will."""
        return self._paths.checkpoint(checkpoint_id) / name

    def get(self, checkpoint_id: str, *, only: Collection[str] | None = None) -> StoredCheckpoint:
        """Return a checkpoint; with `only`, as if it held no more than these files."""
        if CHECKPOINT_ID.fullmatch(checkpoint_id) is None:
            raise CheckpointNotFound
        files = read_manifest(self._paths, checkpoint_id)
        chosen = {name: files[name] for name in files if only is None or name in only}
        if not chosen:
            raise CheckpointNotFound
        try:
            return _read_stored(checkpoint_id, self._paths.checkpoint(checkpoint_id), chosen)
        except FileNotFoundError as error:
            # Deleted since the manifest was read.
            raise CheckpointNotFound from error

    def list(self, *, limit: int, cursor: str | None = None) -> CheckpointList:
        """Return a page of checkpoints, the one that was stored into last first."""
        return list_checkpoints(self._paths, limit=limit, cursor=cursor)

    def stored_bytes(self) -> int:
        """Return the size of all files of the owner."""
        ids = [folder.name for folder in self._paths.checkpoints.glob("*")]
        return sum(file.size_bytes for name in ids for file in read_manifest(self._paths, name).values())

    def check_header_sizes(
        self, checkpoint_id: str, stored: Mapping[str, FileInfo], sent: Iterable[HeaderSize]
    ) -> None:
        """Refuse files whose headers are too large together with those of these stored files."""
        check_header_sizes(self._paths.checkpoint(checkpoint_id), stored, sent)

    def exists(self, checkpoint_id: str) -> bool:
        """Whether any file is stored under the id."""
        return bool(CHECKPOINT_ID.fullmatch(checkpoint_id) and read_manifest(self._paths, checkpoint_id))

    def file(self, checkpoint_id: str, name: str) -> FileInfo | None:
        """Return what is known of a stored file; None if there is none."""
        if CHECKPOINT_ID.fullmatch(checkpoint_id) is None:
            return None
        return read_manifest(self._paths, checkpoint_id).get(name)

    def take_back(self, checkpoint_id: str, file: FileInfo, place: Path) -> bool:
        """Move a file away again whose process was killed after it renamed it, but before it counted."""
        with self._lock(checkpoint_id):
            path = self.file_path(checkpoint_id, file.name)
            if file.name in read_manifest(self._paths, checkpoint_id) or not path.is_file():
                return False
            path.rename(place)
            return True

    def delete(self, checkpoint_id: str, *, unless_needed: Guard = nullcontext) -> Freed:
        """Delete a checkpoint; `unless_needed` keeps jobs off it while it is moved away, or raises.

        It is entered under the checkpoint's lock, which an upload may hold for longer than the guard lasts.
        """
        if CHECKPOINT_ID.fullmatch(checkpoint_id) is None:
            raise CheckpointNotFound
        with self._lock(checkpoint_id):
            files = read_manifest(self._paths, checkpoint_id)
            if not files:
                raise CheckpointNotFound
            with unless_needed():
                stored = stored_us(self._paths, checkpoint_id)
                place = move_to_trash(self._paths.checkpoint(checkpoint_id), self._paths.trash)
            if stored is not None:
                self._timeline.remove(stored, checkpoint_id)
        purge(place)
        try:
            for name in weight_files(files):
                if self._holders.remove(files[name].sha256, checkpoint_id):
                    self._cache.remove_of(files[name].sha256)
        except OSError:
            log.exception("decompositions of checkpoint %s cannot be removed yet", checkpoint_id)
        return Freed(sum(file.size_bytes for file in files.values()), (stored or 0) / 1e6)

    def _publish(
        self, checkpoint_id: str, file: AtomicFile, index: ShardIndex | None, header: PackedHeader | None
    ) -> bool:
        info, folder = file.info, file.path.parent
        with self._lock(checkpoint_id), disk_errors():
            files = read_manifest(self._paths, checkpoint_id)
            if known := files.get(info.name):
                if known != info:
                    raise ContentConflict(info.name)
                return False
            if is_companion(info.name):
                check_companions([*files.values(), info])
            else:
                check_addition(folder, files, name=info.name, header=header, index=index)
            make_directory(folder)
            if header is not None:
                header.keep(kept_path(folder, info.name), info.sha256)
                self._holders.add(info.sha256, checkpoint_id)
            before_us = stored_us(self._paths, checkpoint_id)
            # If this process is killed between the two, the file does not count and can be sent again.
            file.publish()
            write_manifest(self._paths, checkpoint_id, files | {info.name: info})
            self._note_time(checkpoint_id, before_us)
        return True

    def _note_time(self, checkpoint_id: str, before_us: int | None) -> None:
        try:
            self._timeline.note(checkpoint_id, before_us)
        except OSError:
            # It is stored all the same.
            log.exception("checkpoint %s is in no list before the next reconciliation", checkpoint_id)


def new_checkpoint_id() -> str:
    """Return an id that cannot be guessed, for files that come with a job."""
    return "C" + secrets.token_hex(16)


def check_chosen_id(checkpoint_id: str) -> None:
    """Refuse an id of the service's own kind, under which a checkpoint goes when no job names it."""
    if ONE_SHOT_ID.fullmatch(checkpoint_id):
        raise CheckpointError(
            "bad-name",
            "Ids of the letter C and 32 hexadecimal digits are given by the service, to checkpoints that "
            "come with a job and go with it. Choose another id.",
        )


def check_names(checkpoint_id: str, name: str) -> None:
    """Refuse a new file by its checkpoint's name or its own."""
    if CHECKPOINT_ID.fullmatch(checkpoint_id) is None:
        raise CheckpointError(
            "bad-name",
            "A checkpoint's id is made of at most 128 letters, digits, dots, underscores and hyphens.",
        )
    if not is_file_name(name):
        raise CheckpointError("bad-name", why_not(name))


def checked_limit_bytes(name: str, content_bytes: int | None, *, limit_bytes: int) -> int:
    """Return the most bytes of a file of this name, or refuse a length that is known to be above."""
    if is_companion(name):
        limit_bytes = min(limit_bytes, companion_limit_bytes(name))
    if content_bytes is not None and content_bytes > limit_bytes:
        raise too_large(name, limit_bytes)
    return limit_bytes


def _read_stored(checkpoint_id: str, folder: Path, files: Mapping[str, FileInfo]) -> StoredCheckpoint:
    """Read the headers of stored files, which were checked before they were published."""
    index = read_index(folder, files)
    config = stored_config(folder, files)
    headers = {name: stored_header(folder, files[name]) for name in weight_files(files)}
    return StoredCheckpoint(
        with_layers_of(config, headers),
        index,
        next(filter(is_index, files), None),
        folder,
        id=checkpoint_id,
        companions=tuple(filter(is_companion, files)),
        config=config,
        files=tuple(files.values()),
        missing=tuple(islice(missing_files(files, index), MISSING_SHOWN)),
    )
