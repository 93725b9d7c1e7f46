"""Keeping a folder of folders of files within bounds: what was used least recently goes first."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Self

from schemas.spectrum import Spectrum
from state.cache_file import DamagedFile, DecompositionFile, DecompositionHeader, encode_header
from state.data_dir import DataDir
from state.files import AtomicFile, locked

# Of what the files and the free disk are together, the files never take more than one part in so many.
SHARE = 2


@dataclass(frozen=True, slots=True, order=True)
class _CacheEntry:
    used_ns: int
    path: str
    size_bytes: int


def make_room(root: Path, nbytes: int, *, limit_bytes: int | None, spare_bytes: int = 0) -> bool:
    """Remove files until so many bytes more may lie there, and return whether they may at all.

    `spare_bytes` of the disk are not counted as free: they are for something else that is still to come.
    The caller holds a lock, so that two do not take the same room. A file that is open stays readable.
    """
    if limit_bytes is None:
        return True
    entries = sorted(_files(root))
    used_bytes = sum(file.size_bytes for file in entries)
    most = min(limit_bytes, (used_bytes + shutil.disk_usage(root).free - spare_bytes) // SHARE)
    if nbytes > most:
        return False
    _evict(entries, used_bytes + nbytes - most)
    return True


def free_space(root: Path, nbytes: int) -> None:
    """Remove files until so many bytes more are free; none at all where that cannot be."""
    entries = sorted(_files(root))
    if sum(file.size_bytes for file in entries) >= nbytes:
        _evict(entries, nbytes)


def _evict(entries: Sequence[_CacheEntry], nbytes: int) -> None:
    for file in entries:
        if nbytes <= 0:
            break
        with suppress(FileNotFoundError):
            os.unlink(file.path)  # noqa: PTH108 - as scandir gave it
        with suppress(OSError):
            os.rmdir(os.path.dirname(file.path))  # noqa: PTH106, PTH120 - unless others are left there
        nbytes -= file.size_bytes


def _files(root: Path) -> Iterator[_CacheEntry]:
    for folder in _entries(root):
        if not folder.is_dir(follow_symlinks=False):
            continue
        for entry in _entries(folder.path):
            # Who reads marks as used at any time, and who deletes a checkpoint asks nobody.
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield _CacheEntry(status.st_mtime_ns, entry.path, status.st_size)


def _entries(path: Path | str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


log = logging.getLogger("eckart.state")
ENDING = ".decomposition"
SEPARATOR = "-"
# How many decompositions there may be of one tensor, each made more carefully than the one before.
STEPS = 4


@dataclass(frozen=True, slots=True)
class DecompositionKey:
    """What was decomposed, by its content, and how carefully; digests of stored files are known already."""

    file_sha256: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    transposed: bool = False
    calibration_sha256: str | None = None
    step: int = 0

    @property
    def digest(self) -> bytes:
        """The SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(astuple(self)).encode()).digest()

    @property
    def folder(self) -> str:
        """The digests of the files that it tells something of: where one is deleted, it goes too."""
        return SEPARATOR.join(filter(None, (self.file_sha256, self.calibration_sha256)))


class DecompositionCache:
    """Files below one folder, for any number of processes; the least recently used go first.

    Nothing here is forced to the disk: what a loss of power tears is found out by checksums. Trouble with the
    disk is logged and never passed on, since what is not there can be computed again.
    """

    def __init__(self, folder: Path, parts: Path, *, limit_bytes: int | None, spare_bytes: int = 0) -> None:
        self._folder = folder
        self._parts = parts
        self._limit_bytes = limit_bytes
        self._spare_bytes = spare_bytes

    @classmethod
    def shared(cls, data_dir: Path, *, limit_bytes: int | None, spare_bytes: int = 0) -> Self:
        """Return the one that lies in the data directory; it leaves `spare_bytes` of the disk to a job."""
        paths = DataDir(data_dir)
        return cls(paths.decompositions, paths.parts, limit_bytes=limit_bytes, spare_bytes=spare_bytes)

    def could_hold(self, nbytes: int) -> bool:
        """Say whether so much could be kept at once.

        It hangs on the setting and not on what the disk holds today, so that a job is always done alike.
        """
        return self._limit_bytes is None or nbytes <= self._limit_bytes

    def open(self, key: DecompositionKey) -> DecompositionFile | None:
        """Return the file, marked as used, for the caller to close; None where none is there and whole."""
        try:
            file = self._file(key)
        except FileNotFoundError:
            return None
        except (DamagedFile, OSError) as fault:
            self.discard(key, fault)
            return None
        with suppress(OSError):
            os.utime(self._path(key))
        return file

    def spectra(self, keys: Iterable[DecompositionKey]) -> dict[str, tuple[Spectrum, ...]]:
        """Return the spectra that are kept whole, by tensor: those of the steps up to the first missing."""
        found = {key.tensor: tuple(self._spectra(key)) for key in keys}
        return {tensor: steps for tensor, steps in found.items() if steps}

    def _spectra(self, key: DecompositionKey) -> Iterator[Spectrum]:
        for step in range(STEPS):
            try:
                with self._file(replace(key, step=step)) as file:
                    spectrum = file.head.singular_values
            except (OSError, DamagedFile):
                return
            yield spectrum

    def discard(self, key: DecompositionKey, fault: Exception) -> None:
        """Say that it cannot be used, and remove it if the fault is its own."""
        log.warning("the decomposition of %s cannot be used: %s", key.tensor, fault)
        if isinstance(fault, DamagedFile):
            with suppress(OSError):
                self._path(key).unlink()

    def put(
        self, key: DecompositionKey, head: DecompositionHeader, basis: memoryview, *, sources: Iterable[Path]
    ) -> bool:
        """Keep a decomposition in place of what is there, and return whether it is kept.

        `sources` are the files that it was made of: where one was deleted meanwhile, nothing of it stays.
        """
        begin = encode_header(head, basis)
        path = self._path(key)
        try:
            with self._lock():
                # What it replaces goes first, or room would be made for both.
                path.unlink(missing_ok=True)
                if not self._make_room(len(begin) + len(basis)):
                    return False
                self._publish(path, begin, basis)
            if all(source.exists() for source in sources):
                return True
            self._remove([key.folder])
        except OSError:
            log.warning("the decomposition of %s cannot be kept", key.tensor, exc_info=True)
        return False

    def trim(self) -> None:
        """Keep within the bounds, which other files on the disk may have narrowed."""
        if self._folder.is_dir():
            with self._lock():
                self._make_room(0)

    def free_space(self, nbytes: int) -> None:
        """Leave so much more of the disk to what cannot be computed again, where that is possible at all."""
        if self._folder.is_dir():
            with self._lock():
                free_space(self._folder, nbytes)

    def remove_orphans(self, held: Callable[[], AbstractSet[str]]) -> None:
        """Remove all that was made of files that nobody has any more; `held` is asked only if need be."""
        with suppress(FileNotFoundError):
            entries = [entry.name for entry in self._folder.iterdir() if entry.is_dir()]
            if entries:
                digests = held()
                self._remove(name for name in entries if not digests >= set(name.split(SEPARATOR)))

    def _remove(self, folders: Iterable[str]) -> None:
        for folder in folders:
            shutil.rmtree(self._folder / folder, ignore_errors=True)

    def _make_room(self, nbytes: int) -> bool:
        return make_room(self._folder, nbytes, limit_bytes=self._limit_bytes, spare_bytes=self._spare_bytes)

    def _publish(self, path: Path, begin: bytes, basis: memoryview) -> None:
        path.parent.mkdir(exist_ok=True)
        with AtomicFile(path, parts=self._parts, durable=False, mode=0o600) as file:
            file.write(begin)
            file.write(basis)
            file.publish()

    def _file(self, key: DecompositionKey) -> DecompositionFile:
        return DecompositionFile(self._path(key), key.digest)

    def _lock(self) -> AbstractContextManager[None]:
        return locked(self._folder / ".lock")

    def _path(self, key: DecompositionKey) -> Path:
        return self._folder / key.folder / (key.digest.hex() + ENDING)
