"""The cache of decompositions: found by the digest of their input, shared by all processes, limited in size.

Nothing here is flushed to the disk: checksums show what a power failure left incomplete. Trouble with the
disk is logged and never raised, since a missing decomposition can be computed again.
"""

import copy
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Self

from schemas.spectrum import Spectrum
from state.cache.eviction import ENDING, entries_of, free_space, make_room
from state.cache.file import DamagedFile, DecompositionFile, DecompositionHeader, encode_header
from state.cache.key import (
    DIGEST_ENDING,
    MAX_SOLVERS,
    DecompositionKey,
    folder_of,
    owned,
    sources_of,
)
from state.data_dir import DataDir
from state.errors import FilesLocked
from state.files import AtomicFile, locked

log = logging.getLogger("eckart.state")

# In the folder of a calibration or a base: the name of a folder of decompositions that depend on it.
DEPENDENT_ENDING = ".dependent"
# In a folder whose name does not say it: the files that its decompositions depend on.
SOURCES_NAME = ".sources"
# The cache can be done without, so nobody waits long for a process that keeps it locked.
CACHE_WAIT_S = 1.0
HASTY_S = 60.0


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
        for origin in [key.origin] if key.origin else origins(key.sources):
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

    def _origins(self, sources: str) -> list[str]:
        """Return the origins of the decompositions of some files; those of earlier releases have none."""
        entries = entries_of(self._folder / folder_of(self._owner, sources))
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
            self._publish(path, key.sources, begin, basis)
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
                self._remove(name for name in entries if not sources >= self._sources_of(name))

    def remove_of(self, sha256: str) -> None:
        """Remove what was computed from a file of the owner, without a look at anything else."""
        name = owned(self._owner, sha256)
        names = [entry.name for entry in entries_of(self._folder / name)]
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

    def _publish(self, path: Path, sources: str, begin: bytes, basis: memoryview) -> None:
        self._make_folder(path.parent, sources)
        with AtomicFile(path, parts=self._parts, durable=False, mode=0o600) as file:
            file.write(begin)
            file.write(basis)
            try:
                file.publish()
            except FileNotFoundError:
                # Whoever evicted the last file of the folder has removed it meanwhile.
                path.parent.mkdir(exist_ok=True)
                file.publish()

    def _make_folder(self, folder: Path, sources: str) -> None:
        """Make a folder, and name it in the folder of each file that it depends on, if these are several."""
        whole = owned(self._owner, sources)
        try:
            folder.mkdir()
        except FileExistsError:
            return
        if folder.name.endswith(DIGEST_ENDING):
            (folder / SOURCES_NAME).write_text(whole)
        for name in sorted(sources_of(whole)):
            if name != folder.name:
                (self._folder / name).mkdir(exist_ok=True)
                (self._folder / name / (folder.name + DEPENDENT_ENDING)).touch()

    def _sources_of(self, folder: str) -> set[str]:
        """Return the files that the decompositions in a folder depend on; one that has no name if unknown."""
        if not folder.endswith(DIGEST_ENDING):
            return sources_of(folder)
        try:
            return sources_of((self._folder / folder / SOURCES_NAME).read_text())
        except FileNotFoundError:
            return {""}

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
        return self._folder / folder_of(self._owner, key.sources) / name
