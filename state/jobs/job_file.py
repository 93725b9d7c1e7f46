"""A job on disk: job.json, the whole of its record, and the files that its attempts leave."""

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from schemas.job import TERMINAL
from state.data_dir import RECORD_NAME, SPOOL_NAME, DataDir
from state.errors import FilesLocked, JobNotFound, OutOfSpace
from state.files import AtomicFile, disk_errors, locked, make_directory, move_to_trash, purge, write_atomic
from state.jobs.attempt_lock import PATTERN as ATTEMPT_LOCKS
from state.jobs.read_last import ReadLast
from state.jobs.records import (
    JOB_ID,
    JobRecord,
    damaged_fields,
    idempotency_of,
    parse_record,
    to_document,
    to_fields,
)
from state.jobs.scripts import Scripts, StateLost, StoredJob
from state.times import microseconds

log = logging.getLogger("eckart.state")
# Few enough that Redis answers others in between.
BATCH = 100
NOTE_WAIT_S = 1.0
RESULT = re.compile(r"result-(\d+)")
# The field of a hash whose job.json has not been written yet: see state/jobs/lua/create.lua.
UNWRITTEN = "unwritten"


class DamagedRecord(Exception):  # noqa: N818 - it says what happened, and never leaves this module
    """A job.json is no JSON, or lacks what the transitions need."""


class JobFiles:
    """Keeps each job.json up to date with the record, and restores records from it when Redis lost them.

    job.json only moves forwards: one process at a time writes it, from the record as it is under the lock.
    """

    def __init__(self, paths: DataDir, scripts: Scripts) -> None:
        self._paths = paths
        self._scripts = scripts
        self._read_last = ReadLast(_read_record)

    def lock(self, job_id: str, *, wait_s: float | None = None) -> AbstractContextManager[None]:
        """Lock the job's files. Restoring takes every job's lock, so never restore while you hold one."""
        return locked(self._paths.lock("job", job_id), wait_s=wait_s)

    def _document(self, job_id: str) -> dict[str, Any] | None:
        """Read job.json; None where there is none, or raise `DamagedRecord`."""
        found = self._load(job_id)
        return None if found is None else found[0]

    def _load(self, job_id: str) -> tuple[dict[str, Any], dict[str, str]] | None:
        """Return the document of job.json, and the fields of its hash in Redis."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return _read_record(self._path(job_id))
        return None

    def _path(self, job_id: str) -> str:
        return f"{self._paths.jobs}/{job_id}/{RECORD_NAME}"  # paths are slow in a loop

    def known(self, job_id: str) -> Mapping[str, Any]:
        """Return what never changes of a job that Redis has; only its id if job.json is damaged.

        Raises `JobNotFound` where it is about to be created or deleted, or was not created to the end.
        """
        try:
            with suppress(FileNotFoundError, NotADirectoryError):
                return self._read_last.get(self._path(job_id))[0]
            with self.lock(job_id):  # whoever creates or deletes it holds this
                document = self._document(job_id)
                fields = self._scripts.fields(job_id)
                if document is None and (not fields or UNWRITTEN in fields):
                    raise JobNotFound
        except DamagedRecord:
            document = None
        return document or {"id": job_id}

    def write(self, job_id: str, *, wait_s: float | None = None) -> JobRecord | None:
        """Bring the job's files up to date with the record and return it; None where the record is gone."""
        with self.lock(job_id, wait_s=wait_s):
            return self.write_locked(job_id)

    def write_or_defer(self, job_id: str, *, wait_s: float | None = None) -> JobRecord | None:
        """Like `write`, but a full disk or a lock waits for the next sweep: the transition has happened."""
        try:
            return self.write(job_id, wait_s=wait_s)
        except FilesLocked:
            # Without a wait, a lock of the moment is no news.
            if wait_s != 0:
                log.warning("job.json of %s is locked; the next sweep tries again", job_id)
        except (OSError, OutOfSpace):
            log.exception("job.json of %s cannot be written; the next sweep tries again", job_id)
        return self._record(job_id)

    def create_locked(self, job_id: str, fixed: Mapping[str, Any]) -> JobRecord | None:
        """Write job.json of a job that Redis has just got; None where Redis lost it meanwhile."""
        fields = self._scripts.fields(job_id)
        if not fields:
            return None
        document = to_document(fields, fixed)
        record = parse_record(document)
        with disk_errors():
            make_directory(self._paths.job(job_id))
            if record.owner:
                write_atomic(self._paths.owner_note(job_id), record.owner.encode())
        self._write_document(job_id, document)
        return record

    def write_locked(self, job_id: str) -> JobRecord | None:
        """Like `write`, for a caller that holds the lock.

        Raises `StateLost` where Redis was set back behind job.json: the transition must be repeated. A job
        without job.json whose creation died is removed; nobody was told of it.
        """
        fields = self._scripts.fields(job_id)
        if not fields:
            return None
        try:
            on_disk = self._document(job_id)
        except DamagedRecord:
            # What it held is nowhere else, so it is kept as it is.
            return parse_record(to_document(fields, {"id": job_id}))
        if on_disk is None and UNWRITTEN in fields:
            log.warning("job %s was not created to the end; it is removed", job_id)
            self.undo_locked(job_id)
            return None
        if on_disk is None:
            return parse_record(to_document(fields, {"id": job_id}))
        if _is_behind(fields, on_disk):
            # Redis was set back unnoticed and went on from there; clients were answered from what is on disk.
            self._scripts.restore_records([_stored(job_id, on_disk, to_fields(on_disk))])
            raise StateLost
        document = to_document(fields, on_disk)
        record = parse_record(document)
        # First, since it makes room on a full disk.
        if record.readable and record.state in TERMINAL and not self._scripts.is_leased(job_id):
            remove_attempt_files(self._paths, record)
        if on_disk == document:
            self._scripts.run_always("written", job_id, record.version)
        else:
            self._write_document(job_id, document)
        return record

    def _write_document(self, job_id: str, document: Mapping[str, Any]) -> None:
        with disk_errors():
            write_atomic(self._paths.record(job_id), json.dumps(document, indent=1).encode())
        self._scripts.run_always("written", job_id, document["version"])

    def restore(self, job_id: str, *, wait_s: float | None = None) -> bool:
        """Put a record into Redis where Redis has none or an older one; False: there is no job.json."""
        with self.lock(job_id, wait_s=wait_s):
            return self._restore_locked(job_id)

    def _restore_locked(self, job_id: str) -> bool:
        found = self.stored(job_id)
        if found is not None:
            self._scripts.restore_records([found])
        return found is not None

    def stored(self, job_id: str) -> StoredJob | None:
        """Return what restore.lua needs of a job; None: there is no job.json.

        One that cannot be read is listed as such, and its result is served if it has one.
        """
        try:
            found = self._load(job_id)
        except DamagedRecord:
            log.exception("job %s cannot be read; it is kept as it is", job_id)
            damaged = self._damaged(job_id)
            return StoredJob(job_id, "", json.dumps(damaged))
        return None if found is None else _stored(job_id, *found)

    def created(self) -> int:
        """Return how many jobs were ever created, as far as the data directory knows."""
        try:
            return int(self._paths.created.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def note_created(self, job_id: str) -> None:
        """Note on disk how many jobs there are, so that a Redis that knows of fewer is recognized."""
        number = int(self._scripts.fields(job_id).get("number", 0))
        try:
            with locked(self._paths.lock("created", ""), wait_s=NOTE_WAIT_S):
                if number > self.created():
                    with AtomicFile(self._paths.created, durable=False) as file:
                        file.write(str(number).encode())
                        file.publish()
        except (OSError, OutOfSpace, FilesLocked):
            log.exception("the number of jobs cannot be noted; the next job notes it")

    def with_layers(self) -> list[str]:
        """Return the ids of jobs that have finished layers on disk, the longest unchanged first."""
        found = []
        for spool in self._paths.jobs.glob("*/" + SPOOL_NAME):
            with suppress(FileNotFoundError):
                found.append((spool.stat().st_mtime, spool.parent.name))
        return [name for _, name in sorted(found) if JOB_ID.fullmatch(name)]

    def remove_failed_layers(self, job_id: str, *, older_than_s: float) -> None:
        """Remove the finished layers of a job that failed so long ago; other jobs need theirs."""
        with suppress(FilesLocked), self.lock(job_id, wait_s=0):
            # Whoever resumes and claims the job writes job.json first, and so waits for this lock.
            record = self._record(job_id)
            if record is None or record.state != "failed" or self._scripts.is_leased(job_id):
                return
            if older_than_s and not _ended_before(record, time.time() - older_than_s):
                return
            place = move_to_trash(self._paths.spool(job_id), self._paths.trash)
            purge(place)
            log.info("job %s: its finished layers are removed", job_id)

    def delete(self, job_id: str) -> None:
        """Delete the files, then the record: a record without files can be deleted again, not the reverse."""
        with self.lock(job_id):
            place = move_to_trash(self._paths.job(job_id), self._paths.trash)
            self._scripts.run_always("delete", job_id)
        purge(place)

    def reconcile(self, job_ids: Sequence[str], older_than_s: float) -> Counter[str]:
        """Restore those jobs that Redis does not know, and remove old directories without a job."""
        limit = time.time() - older_than_s
        done: Counter[str] = Counter()
        for job_id in self._scripts.unknown(job_ids):
            # Whoever creates or deletes a job holds this lock, and an attempt makes no directory of a job.
            # The reaper's other steps hold it for a moment, and the next turn of this one is an hour away.
            with suppress(FilesLocked, FileNotFoundError), self.lock(job_id, wait_s=1):
                if self._scripts.fields(job_id):
                    continue
                if self._restore_locked(job_id):
                    done["restored-job"] += 1
                elif self._paths.job(job_id).stat().st_mtime < limit:
                    purge(move_to_trash(self._paths.job(job_id), self._paths.trash))
                    done["job-directory"] += 1
        return done

    def job_ids(self) -> Iterator[str]:
        """Yield the ids of all directories of jobs."""
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._paths.jobs) as entries:
            for entry in entries:
                if JOB_ID.fullmatch(entry.name):
                    yield entry.name

    def expire(self, job_id: str, retention_us: int) -> bool:
        """Delete a job that ended long enough ago: the record first, since only Redis knows if it may go.

        A process that is killed in between leaves job.json, by which the next reconciliation restores it.
        """
        with self.lock(job_id, wait_s=0):
            if self._scripts.run("expire", job_id, retention_us) != "done":
                return False
            place = move_to_trash(self._paths.job(job_id), self._paths.trash)
        purge(place)
        return True

    def undo_locked(self, job_id: str) -> None:
        """Delete a job whose creation failed: the record goes even where the files cannot."""
        try:
            purge(move_to_trash(self._paths.job(job_id), self._paths.trash))
        finally:
            self._scripts.run_always("delete", job_id)

    def _record(self, job_id: str) -> JobRecord | None:
        fields = self._scripts.fields(job_id)
        try:
            known = self._document(job_id) or {"id": job_id}
        except DamagedRecord:
            known = {"id": job_id}
        return parse_record(to_document(fields, known)) if fields else None

    def _damaged(self, job_id: str) -> dict[str, str]:
        """Return the fields of a job of which nothing but its files is known."""
        created_us = self._paths.record(job_id).stat().st_mtime_ns // 1000
        names = (path.name for path in self._paths.job(job_id).glob("result-*"))
        fences = [int(found[1]) for name in names if (found := RESULT.fullmatch(name))]
        try:
            owner = self._paths.owner_note(job_id).read_text()
        except FileNotFoundError:
            owner = ""
        return damaged_fields(created_us, max(fences, default=None), owner)


def _stored(job_id: str, document: Mapping[str, Any], fields: Mapping[str, str]) -> StoredJob:
    key = idempotency_of(document) if "idempotency" in fields else None
    return StoredJob(job_id, key.fingerprint if key else "", json.dumps(fields))


def batched(items: Iterable[str]) -> Iterator[list[str]]:
    """Yield the items in lists of limited length."""
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _is_behind(fields: Mapping[str, str], document: Mapping[str, Any]) -> bool:
    """Whether Redis was set back behind job.json, by the same rule as in restore.lua."""
    on_disk = to_fields(document)
    ahead = int(fields["version"]) - int(on_disk["version"])
    same = all(fields[name] == on_disk[name] for name in ("state", "fence"))
    return ahead < 0 or (ahead == 0 and not same)


def _ended_before(record: JobRecord, time_s: float) -> bool:
    return record.finished_at is not None and microseconds(record.finished_at) < time_s * 1e6


def remove_attempt_files(paths: DataDir, record: JobRecord) -> None:
    """Remove the finished layers of an ended job, and every result but the one that its record names.

    A failed job keeps its layers, so that it can be resumed: see `JobFiles.remove_failed_layers`.
    """
    try:
        for path in _attempt_files(paths, record):
            purge(move_to_trash(path, paths.trash))
        for lock in paths.job(record.id).glob(ATTEMPT_LOCKS):
            lock.unlink(missing_ok=True)
    except OSError:
        log.exception("files of job %s cannot be removed; delete the job to try again", record.id)


def _attempt_files(paths: DataDir, record: JobRecord) -> Iterator[Path]:
    published = None if record.result_fence is None else paths.result(record.id, record.result_fence)
    layers = () if record.state == "failed" else (paths.spool(record.id),)
    for path in (*layers, *sorted(paths.job(record.id).glob("result-*"))):
        if path != published and path.is_dir():
            yield path


def _read_record(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - paths are slow in a loop
            document = json.loads(file.read())
        return dict(document), to_fields(document)
    except (ValueError, TypeError, RecursionError, IsADirectoryError) as error:
        raise DamagedRecord(path) from error
