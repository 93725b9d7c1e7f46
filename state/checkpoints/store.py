"""Stored checkpoints: a folder of published files, and a manifest with the size and digest of each.

A file counts as stored from the moment the manifest names it.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from pydantic import TypeAdapter

from schemas.checkpoint import FileInfo
from schemas.format.companion import MAX_COMPANIONS_BYTES, companion_limit_bytes
from schemas.format.errors import CheckpointError
from schemas.format.files import CheckpointFiles
from schemas.format.index import ShardIndex, check_shards, parse_index
from schemas.format.model_config import stored_config, with_layers_of
from schemas.format.names import (
    CHECKPOINT_ID,
    SHARD,
    index_of,
    is_companion,
    is_file_name,
    is_index,
    why_not,
)
from state.cache.key import owned
from state.cache.store import DecompositionCache
from state.checkpoints.holders import Holders
from state.checkpoints.parsed_header import (
    HeaderSize,
    PackedHeader,
    kept_path,
    stored_header,
    stored_header_size,
)
from state.checkpoints.timeline import Timeline, stored_us
from state.data_dir import DataDir
from state.errors import CheckpointNotFound, ContentConflict, FilesLocked, TooLarge
from state.files import (
    PART_ENDING,
    AtomicFile,
    Freed,
    disk_errors,
    is_of_this_kernel,
    is_orphaned,
    locked,
    make_directory,
    move_to_trash,
    purge,
    write_atomic,
)
from state.uploads.upload import Upload, too_large

log = logging.getLogger("eckart.state")

READ_ONLY = 0o444
# What `new_checkpoint_id` returns.
ONE_SHOT_ID = re.compile(r"C[0-9a-f]{32}")
Guard = Callable[[], AbstractContextManager[None]]
MANIFEST = TypeAdapter(dict[str, FileInfo])
A_WEIGHT_FILE = "a .safetensors file"
AN_INDEX = "an index file (*.safetensors.index.json)"
MISSING_SHOWN = 1000
# A temporary file is locked within this time after it was opened.
JUST_BEGUN_S = 5.0


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


class CheckpointStore:
    """The checkpoints of one owner below the data directory; cleaning up is for all owners."""

    def __init__(self, data_dir: Path, owner: str = "") -> None:
        self._paths = DataDir(data_dir, owner)
        self._cache = DecompositionCache.shared(data_dir, limit_bytes=None, owner=owner)
        self._holders = Holders(self._paths)
        self._timeline = Timeline(self._paths)

    @property
    def owner(self) -> str:
        return self._paths.owner

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
            for name in _weight_files(files):
                if self._holders.remove(files[name].sha256, checkpoint_id):
                    self._cache.remove_of(files[name].sha256)
        except OSError:
            log.exception("decompositions of checkpoint %s cannot be removed yet", checkpoint_id)
        return Freed(sum(file.size_bytes for file in files.values()), (stored or 0) / 1e6)

    def remove_orphans(self) -> None:
        """Remove cached decompositions of files that no checkpoint holds any more."""
        held: set[str] = set()
        for paths in self._paths.of_all_owners():
            known = set(_held(paths))
            Holders(paths).correct(known)
            held |= {owned(paths.owner, sha256) for sha256, _ in known}
        self._cache.remove_orphans(lambda: held)

    def correct_lists(self) -> int:
        """Make all owners' lists agree with the disk; return of how many checkpoints they were wrong."""
        return sum(Timeline(paths).correct() for paths in self._paths.of_all_owners())

    def remove_uncounted(self, older_than_s: float) -> int:
        """Remove what lies in folders of checkpoints and is in no manifest; return the number of files.

        A process that is killed between the two steps of publishing leaves such a file.
        """
        limit, removed = time.time() - older_than_s, 0
        for paths in self._paths.of_all_owners():
            for folder in paths.checkpoints.glob("*"):
                if CHECKPOINT_ID.fullmatch(folder.name) and any(_uncounted(paths, folder, limit)):
                    with suppress(FilesLocked), self.of(paths.owner)._lock(folder.name, wait_s=0):  # noqa: SLF001
                        removed += _remove_uncounted(paths, folder, limit)
        return removed

    def old_one_shots(self, older_than_s: float) -> list[str]:
        """Return the ids of the owner's checkpoints that came with a job and have not changed for so long."""
        limit = time.time() - older_than_s
        return [
            folder.name
            for folder in self._paths.checkpoints.glob("C*")
            if ONE_SHOT_ID.fullmatch(folder.name) and _is_older(folder, limit)
        ]

    def owners(self) -> list[str]:
        """Return all owners that there are."""
        return [paths.owner for paths in self._paths.of_all_owners()]

    def sweep_parts(self, older_than_s: float) -> int:
        """Remove unfinished uploads and deletions of killed processes; return how many there were."""
        limit = time.time() - older_than_s
        parts = list(self._paths.parts.glob("*" + PART_ENDING))
        trash = [path for path in self._paths.trash.glob("*") if _is_older(path, limit)]
        for path in trash:
            purge(path)
        return sum(_remove_orphan(path, limit) for path in parts) + len(trash)

    def _lock(self, checkpoint_id: str, *, wait_s: float | None = None) -> AbstractContextManager[None]:
        return locked(self._paths.lock("checkpoint", self._paths.key(checkpoint_id)), wait_s=wait_s)

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
            _write_manifest(self._paths, checkpoint_id, files | {info.name: info})
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


# The manifest.


def read_manifest(paths: DataDir, checkpoint_id: str) -> dict[str, FileInfo]:
    """Return the stored files by name, in order, without those that were removed since."""
    try:
        entries = MANIFEST.validate_json(paths.manifest(checkpoint_id).read_bytes())
    except FileNotFoundError:
        return {}
    folder = paths.checkpoint(checkpoint_id)
    return {name: entries[name] for name in sorted(entries) if (folder / name).is_file()}


def has_files(paths: DataDir, checkpoint_id: str, files: Iterable[FileInfo]) -> bool:
    """Whether a checkpoint still has exactly these bytes under these names."""
    stored = read_manifest(paths, checkpoint_id)
    return all(stored.get(file.name) == file for file in files)


def stored_is_complete(paths: DataDir, checkpoint_id: str, files: Collection[str]) -> bool:
    """Whether nothing is missing of a checkpoint of these files; headers are not read."""
    index = _read_index(paths.checkpoint(checkpoint_id), files)
    return next(missing_files(files, index), None) is None


def _write_manifest(paths: DataDir, checkpoint_id: str, files: Mapping[str, FileInfo]) -> None:
    """Replace the manifest; the caller holds the checkpoint's lock."""
    write_atomic(paths.manifest(checkpoint_id), MANIFEST.dump_json(dict(files), indent=1))


def _read_stored(checkpoint_id: str, folder: Path, files: Mapping[str, FileInfo]) -> StoredCheckpoint:
    """Read the headers of stored files, which were checked before they were published."""
    index = _read_index(folder, files)
    config = stored_config(folder, files)
    headers = {name: stored_header(folder, files[name]) for name in _weight_files(files)}
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


# Whether files fit together.


def check_companions(files: Iterable[FileInfo]) -> None:
    """Refuse more companions than a checkpoint may have."""
    if sum(file.size_bytes for file in files if is_companion(file.name)) > MAX_COMPANIONS_BYTES:
        raise TooLarge(MAX_COMPANIONS_BYTES, "What the checkpoint holds beside its weights")


def check_addition(
    folder: Path,
    files: Mapping[str, FileInfo],
    *,
    name: str,
    header: PackedHeader | None,
    index: ShardIndex | None,
) -> None:
    """Check that new weights with this header, or a new index with this content, fit the stored files."""
    others = {other: info for other, info in files.items() if other != name}
    if header is not None:
        check_header_sizes(folder, others, [header.size])
    if index is not None and (second := next(filter(is_index, others), None)):
        raise CheckpointError(
            "second-index",
            f"The checkpoint has an index already, {second}. Use one index per checkpoint.",
        )
    index = index or _read_index(folder, others)
    if index is None:
        return
    _check_named(index, _weight_files({*others, name}), sent=name)
    if set(index.shards) <= {*others, name}:
        sent = {} if header is None else {name: header.header()}
        stored = {shard: stored_header(folder, others[shard]) for shard in index.shards if shard not in sent}
        check_shards(index, stored | sent)


def check_header_sizes(folder: Path, stored: Mapping[str, FileInfo], sent: Iterable[HeaderSize]) -> None:
    """Refuse a checkpoint whose files, stored and sent, have more tensors or headers than one may have."""
    kept = (stored_header_size(folder, stored[name]) for name in _weight_files(stored))
    sum((*kept, *sent), start=HeaderSize()).check()


def missing_files(names: Collection[str], index: ShardIndex | None) -> Iterator[str]:
    """Yield the names of the files that a checkpoint of these files and this index lacks."""
    files = _weight_files(names)
    if index is not None:
        yield from (shard for shard in index.shards if shard not in names)
        return
    shard = next((match for name in files if (match := SHARD.fullmatch(name))), None)
    if shard:
        stem, count = shard["stem"], shard["count"]
        yield index_of(stem)
        siblings = (f"{stem}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1))
        yield from (name for name in siblings if name not in names)
    elif not files:
        yield A_WEIGHT_FILE
    elif len(files) != 1:
        yield AN_INDEX


def _check_named(index: ShardIndex, names: Collection[str], *, sent: str) -> None:
    for name in names:
        if name not in index.shards:
            whose = "The index" if name == sent else "This index"
            raise CheckpointError(
                "shard-extra",
                f"{whose} does not name the file {name}. Name it there, or use another checkpoint id.",
                "/weight_map",
            )


def _read_index(folder: Path, names: Collection[str]) -> ShardIndex | None:
    name = next(filter(is_index, names), None)
    return parse_index((folder / name).read_bytes()) if name else None


def _weight_files(names: Collection[str]) -> list[str]:
    return sorted(name for name in names if not (is_index(name) or is_companion(name)))


# Sweeping.


def _remove_orphan(part: Path, limit: float) -> bool:
    """Remove an orphaned temporary file; what is no file, or cannot be removed, stays.

    It lies there until `limit`, since other machines' locks may be unknown here; one of this kernel does not.
    """
    if is_of_this_kernel(part):
        limit = max(limit, time.time() - JUST_BEGUN_S)
    try:
        if not (part.is_file() and _is_older(part, limit) and is_orphaned(part)):
            return False
        part.unlink()
    except OSError:
        return False
    return True


def _held(paths: DataDir) -> Iterator[tuple[str, str]]:
    """Yield the digest of each weight file of an owner, and the checkpoint that holds it."""
    for folder in paths.checkpoints.glob("*"):
        files = read_manifest(paths, folder.name)
        yield from ((files[name].sha256, folder.name) for name in _weight_files(files))


def _uncounted(paths: DataDir, folder: Path, limit: float) -> Iterator[Path]:
    """Yield old files that the manifest does not name, and the headers that are kept of no such file."""
    files = read_manifest(paths, folder.name)
    counted = {folder / name for name in files} | {kept_path(folder, name) for name in files}
    counted.add(paths.manifest(folder.name))
    yield from (path for path in folder.iterdir() if path not in counted and _is_older(path, limit))


def _remove_uncounted(paths: DataDir, folder: Path, limit: float) -> int:
    """Remove them, and the folder if nothing is left; the caller holds the checkpoint's lock."""
    removed = 0
    for path in _uncounted(paths, folder, limit):
        with suppress(IsADirectoryError, FileNotFoundError):
            path.unlink()
            removed += 1
    with suppress(OSError):
        folder.rmdir()
    return removed


def _is_older(path: Path, limit: float) -> bool:
    try:
        return path.stat().st_mtime < limit
    except OSError:
        return False
