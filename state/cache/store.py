"""The cache of decompositions: found by the digest of their input, shared by all processes, limited in size.

Nothing here is flushed to the disk: checksums show what a power failure left incomplete. Trouble with the
disk is logged and never raised, since a missing decomposition can be computed again.
"""

import copy
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Self

from schemas.format.tensor import TensorInfo
from schemas.planning.layer import LayerPlan
from schemas.spectrum import Spectrum
from state.cache.file import DamagedFile, DecompositionFile, DecompositionHeader, encode_header
from state.data_dir import DataDir
from state.errors import FilesLocked
from state.files import AtomicFile, locked

log = logging.getLogger("eckart.state")

ENDING = ".safetensors"
# In the folder of a calibration or a base: the name of a folder of decompositions that depend on it.
DEPENDENT_ENDING = ".dependent"
SEPARATOR = "-"
OWNER_SEPARATOR = "@"
# The most solvers that a cascade has, and so the most decompositions of one tensor, ever more accurate.
MAX_SOLVERS = 4
# Of the free disk and the cache together, the cache takes at most one part in so many.
DISK_SHARE = 2
# The bytes in the cache, so that a decomposition is stored without a look at all others. It may be too large,
# since deletions are not counted, and too small only by what was being written at the last look at all.
USED_NAME = ".used"
USED_DIGITS = 20
# From a full cache, one part in so many is evicted beyond what is needed: the next then need no look either.
SLACK_SHARE = 16
# The cache can be done without, so nobody waits long for a process that keeps it locked.
CACHE_WAIT_S = 1.0
HASTY_S = 60.0


@dataclass(frozen=True, slots=True)
class DecompositionKey:
    """What was decomposed, by its content, and by which solver of the cascade."""

    file_sha256: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    transposed: bool = False
    calibration_sha256: str | None = None
    solver: int = 0
    base_sha256: str | None = None
    # What of the weight is decomposed, where it is not the weight itself.
    variant: str = ""
    # By which libraries on which processor, in short: workers of two kinds keep one decomposition each. It is
    # no part of the digest; the service, which only needs the spectrum, takes that of any.
    origin: str = ""

    @classmethod
    def of(
        cls,
        file_sha256: str,
        tensor: TensorInfo,
        layer: LayerPlan,
        *,
        statistics_sha256: Collection[str] = (),
        base_sha256: str | None = None,
    ) -> Self:
        """Return the key of a weight: the service looks for what the worker stored, so both build it here.

        The digests are those of the files with the layer's statistics and with the weight that is subtracted.
        """
        return cls(
            file_sha256,
            tensor.name,
            tensor.dtype,
            tensor.shape,
            layer.transposed,
            calibration_sha256=SEPARATOR.join(statistics_sha256) or None,
            base_sha256=base_sha256,
            variant=layer.decomposed,
        )

    @property
    def digest(self) -> bytes:
        """The SHA-256 of all fields but the origin."""
        # Fields that are not given do not count, so that keys stay the same where fields are added.
        names = [name for name in KEY_FIELDS if name not in ADDED_FIELDS or getattr(self, name)]
        # `astuple` copies each value, and a job asks for thousands of digests.
        values = [getattr(self, name) for name in names]
        return hashlib.sha256(json.dumps(values).encode()).digest()

    @property
    def folder(self) -> str:
        """The digests of the files it was computed from: it is deleted with any of them."""
        return SEPARATOR.join(filter(None, (self.file_sha256, self.calibration_sha256, self.base_sha256)))


KEY_FIELDS = tuple(field.name for field in fields(DecompositionKey) if field.name != "origin")
ADDED_FIELDS = frozenset({"base_sha256", "variant"})


class DecompositionCache:
    """Decompositions below one folder; the least recently used are evicted first."""

    def __init__(
        self, folder: Path, parts: Path, *, limit_bytes: int | None, spare_bytes: int = 0, owner: str = ""
    ) -> None:
        self._folder = folder
        self._owner = owner
        self._parts = parts
        self._limit_bytes = limit_bytes
        self._spare_bytes = spare_bytes
        self._opened_ns = time.time_ns()
        self._hasty_until_s = 0.0

    @classmethod
    def shared(
        cls, data_dir: Path, *, limit_bytes: int | None, spare_bytes: int = 0, owner: str = ""
    ) -> Self:
        """Return the cache of the data directory; it leaves `spare_bytes` of the disk to a job.

        All owners share its space, but each finds only what came of files of its own.
        """
        paths = DataDir(data_dir)
        return cls(
            paths.decompositions, paths.parts, limit_bytes=limit_bytes, spare_bytes=spare_bytes, owner=owner
        )

    def of(self, owner: str) -> Self:
        """Return the same cache as another owner sees it."""
        other = copy.copy(self)
        other._owner = owner  # noqa: SLF001 - of a copy of this
        return other

    def could_hold(self, nbytes: int) -> bool:
        """Whether the limit allows so much at once.

        This depends on the configured limit only, not on the disk, so that results are reproducible.
        """
        return self._limit_bytes is None or nbytes <= self._limit_bytes

    def open(self, key: DecompositionKey) -> DecompositionFile | None:
        """Open a decomposition and mark it as used; None where there is none, or it is damaged.

        The caller closes the file.
        """
        try:
            file = self._file(key)
        except FileNotFoundError:
            return None
        except (DamagedFile, OSError) as error:
            self.discard(key, error)
            return None
        with suppress(OSError):
            os.utime(self._path(key))
        return file

    def spectra(self, keys: Iterable[DecompositionKey]) -> dict[str, tuple[Spectrum, ...]]:
        """Return the cached spectra by tensor: those of the solvers up to the first that is missing.

        Keys without an origin find those of any; those of one tensor are all of one origin.
        """
        origins = cache(self._origins)
        found = {key.tensor: self._spectra(key, origins) for key in keys}
        return {tensor: spectra for tensor, spectra in found.items() if spectra}

    def _spectra(
        self, key: DecompositionKey, origins: Callable[[str], Sequence[str]]
    ) -> tuple[Spectrum, ...]:
        for origin in [key.origin] if key.origin else origins(key.folder):
            if spectra := tuple(self._spectra_of(replace(key, origin=origin))):
                return spectra
        return ()

    def _spectra_of(self, key: DecompositionKey) -> Iterator[Spectrum]:
        for solver in range(MAX_SOLVERS):
            try:
                with self._file(replace(key, solver=solver)) as file:
                    spectrum = file.head.spectrum
            except (OSError, DamagedFile):
                return
            yield spectrum

    def _origins(self, folder: str) -> list[str]:
        """Return the origins of the decompositions in a folder; those of earlier releases have none."""
        entries = _entries(self._folder / owned(self._owner, folder))
        names = (entry.name for entry in entries if entry.name.endswith(ENDING))
        return sorted({name.partition(".")[2].removesuffix(ENDING[1:]).rstrip(".") for name in names})

    def discard(self, key: DecompositionKey, error: Exception) -> None:
        """Log that a decomposition cannot be used, and remove it if it is damaged."""
        log.warning("the cached decomposition of %s cannot be used: %s", key.tensor, error)
        if isinstance(error, DamagedFile):
            with suppress(OSError):
                self._path(key).unlink()

    def put(
        self, key: DecompositionKey, head: DecompositionHeader, basis: memoryview, *, sources: Iterable[Path]
    ) -> bool:
        """Store a decomposition in place of an older one, and return whether it was stored.

        `sources` are the files it was computed from: if one is gone by then, the entry is removed again.
        """
        begin = encode_header(head, basis)
        path = self._path(key)
        try:
            # Remove the old one first, or room would be made for both.
            path.unlink(missing_ok=True)
            # The lock is for the accounting alone: writing may take long.
            with self._locked():
                if not self._make_room(len(begin) + len(basis)):
                    return False
            self._publish(path, begin, basis)
            if all(source.exists() for source in sources):
                return True
            self._remove([self._path(key).parent.name])
        except FilesLocked:
            log.warning("the decomposition of %s is not stored, since the cache is locked", key.tensor)
        except OSError:
            log.warning("the decomposition of %s cannot be stored", key.tensor, exc_info=True)
        return False

    def trim(self) -> None:
        """Evict until the cache is within its limits, which other files on the disk may have narrowed.

        Raises `FilesLocked` if another process keeps the cache locked.
        """
        if self._folder.is_dir():
            with self._locked():
                self._make_room(0)

    def free_space(self, nbytes: int) -> None:
        """Evict until so many bytes more are free; evict nothing where the cache holds less than that.

        Raises `FilesLocked` if another process keeps the cache locked.
        """
        if self._folder.is_dir():
            with self._locked():
                free_space(self._folder, nbytes)

    def remove_orphans(self, held: Callable[[], AbstractSet[str]]) -> None:
        """Remove the decompositions of deleted files; `held` returns the sources of the stored ones.

        `held` is called only if the cache holds anything.
        """
        with suppress(FileNotFoundError):
            entries = [entry.name for entry in self._folder.iterdir() if entry.is_dir()]
            if entries:
                sources = held()
                self._remove(name for name in entries if not sources >= _sources(name))

    def remove_of(self, sha256: str) -> None:
        """Remove what was computed from a file of the owner, without a look at anything else."""
        name = owned(self._owner, sha256)
        names = [entry.name for entry in _entries(self._folder / name)]
        dependents = [each for each in names if each.endswith(DEPENDENT_ENDING)]
        self._remove([*(each.removesuffix(DEPENDENT_ENDING) for each in dependents), name])

    def _remove(self, folders: Iterable[str]) -> None:
        for folder in folders:
            shutil.rmtree(self._folder / folder, ignore_errors=True)

    def _make_room(self, nbytes: int) -> bool:
        return make_room(
            self._folder,
            nbytes,
            limit_bytes=self._limit_bytes,
            spare_bytes=self._spare_bytes,
            opened_ns=self._opened_ns,
        )

    def _publish(self, path: Path, begin: bytes, basis: memoryview) -> None:
        self._make_folder(path.parent)
        with AtomicFile(path, parts=self._parts, durable=False, mode=0o600) as file:
            file.write(begin)
            file.write(basis)
            try:
                file.publish()
            except FileNotFoundError:
                # Whoever evicted the last file of the folder has removed it meanwhile.
                path.parent.mkdir(exist_ok=True)
                file.publish()

    def _make_folder(self, folder: Path) -> None:
        """Make a folder, and name it in the folder of each file that it depends on, if these are several."""
        try:
            folder.mkdir()
        except FileExistsError:
            return
        for name in sorted(_sources(folder.name)):
            if name != folder.name:
                (self._folder / name).mkdir(exist_ok=True)
                (self._folder / name / (folder.name + DEPENDENT_ENDING)).touch()

    def _file(self, key: DecompositionKey) -> DecompositionFile:
        return DecompositionFile(self._path(key), key.digest)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the cache's lock, or raise `FilesLocked`.

        Where it could not be had, nobody waits for it for a while, or each layer of a job would.
        """
        wait_s = CACHE_WAIT_S if time.monotonic() >= self._hasty_until_s else 0.0
        try:
            with locked(self._folder / ".lock", wait_s=wait_s):
                yield
        except FilesLocked:
            self._hasty_until_s = time.monotonic() + HASTY_S
            raise

    def _path(self, key: DecompositionKey) -> Path:
        name = key.digest.hex() + (f".{key.origin}" if key.origin else "") + ENDING
        return self._folder / owned(self._owner, key.folder) / name


def owned(owner: str, digest: str) -> str:
    """Return a name of a file, by its digest, that no other owner's file has."""
    return f"{owner}{OWNER_SEPARATOR}{digest}" if owner else digest


def _sources(folder: str) -> set[str]:
    """Return the files that the decompositions in a folder were computed from, as `owned` names them."""
    owner, _, digests = folder.rpartition(OWNER_SEPARATOR)
    return {owned(owner, digest) for digest in digests.split(SEPARATOR)}


# Eviction from a folder of folders of files. The caller holds a lock, so that two do not take the same room;
# a file that is open stays readable.


@dataclass(frozen=True, slots=True, order=True)
class _CacheEntry:
    used_ns: int
    path: str
    size_bytes: int


def make_room(
    root: Path, nbytes: int, *, limit_bytes: int | None, spare_bytes: int = 0, opened_ns: int = 0
) -> bool:
    """Evict files until so many bytes more may be stored, and return whether they may be stored at all.

    `spare_bytes` of the disk do not count as free: they are reserved for files that are still to come. Files
    that were used since `opened_ns` are evicted only if they must be.
    """
    if limit_bytes is None:
        return True
    free_bytes = shutil.disk_usage(root).free - spare_bytes
    used_bytes = _recorded_bytes(root)
    if used_bytes is None or used_bytes + nbytes > _most(used_bytes, free_bytes, limit_bytes):
        entries = sorted(_files(root))
        used_bytes = sum(file.size_bytes for file in entries)
        most = _most(used_bytes, free_bytes, limit_bytes)
        if nbytes > most:
            return False
        needed = used_bytes + nbytes - most
        used_bytes -= _evict(
            entries, needed, slack=most // SLACK_SHARE if needed > 0 else 0, since_ns=opened_ns
        )
    _record_bytes(root, used_bytes + nbytes)
    return True


def _most(used_bytes: int, free_bytes: int, limit_bytes: int) -> int:
    return min(limit_bytes, (used_bytes + free_bytes) // DISK_SHARE)


def _recorded_bytes(root: Path) -> int | None:
    with suppress(FileNotFoundError, ValueError):
        return int((root / USED_NAME).read_text())
    return None


def _record_bytes(root: Path, used_bytes: int) -> None:
    text = f"{used_bytes:0{USED_DIGITS}d}".encode()
    descriptor = os.open(root / USED_NAME, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        # In place: to empty the file first takes a millisecond on ext4, as long as all the rest.
        os.pwrite(descriptor, text, 0)
        if os.fstat(descriptor).st_size != len(text):
            os.ftruncate(descriptor, len(text))
    finally:
        os.close(descriptor)


def free_space(root: Path, nbytes: int) -> None:
    """Evict files of so many bytes; none at all where there are not so many."""
    entries = sorted(_files(root))
    if sum(file.size_bytes for file in entries) >= nbytes:
        _evict(entries, nbytes)


def _evict(entries: Sequence[_CacheEntry], nbytes: int, *, slack: int = 0, since_ns: int = 0) -> int:
    """Remove files of so many bytes, the oldest first, and return how many bytes it were.

    Of those that were not used since then, up to `slack` bytes more are removed.
    """
    evicted = 0
    for file in entries:
        is_old = file.used_ns < since_ns and evicted + file.size_bytes <= nbytes + slack
        if evicted >= nbytes and not is_old:
            break
        with suppress(FileNotFoundError):
            os.unlink(file.path)  # noqa: PTH108 - as scandir gave it
        with suppress(OSError):
            os.rmdir(os.path.dirname(file.path))  # noqa: PTH106, PTH120 - unless others are left there
        evicted += file.size_bytes
    return evicted


def _files(root: Path) -> Iterator[_CacheEntry]:
    for folder in _entries(root):
        if not folder.is_dir(follow_symlinks=False):
            continue
        for entry in _entries(folder.path):
            # Other processes may touch or delete entries at the same time.
            with suppress(FileNotFoundError):
                if entry.name.endswith(ENDING) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield _CacheEntry(status.st_mtime_ns, entry.path, status.st_size)


def _entries(path: Path | str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
