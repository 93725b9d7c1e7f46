"""The job record, in its two forms: the fields of a Redis hash, and the document job.json."""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.checkpoint import FileInfo
from schemas.job import NO_PROGRESS, JobState, Progress
from schemas.planning.references import References
from schemas.problem import Problem
from schemas.report import Totals
from schemas.spec import CompressionSpec

JOB_ID = re.compile(r"J[0-9a-f]{32}")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The fields that a transition may change; the rest of a record is fixed when the job is created.
PLAIN_FIELDS = ("state", "version", "attempt", "fence", "claim_token", "result_fence", "single_file")
JSON_FIELDS = ("error", "summary")
TIME_FIELDS = {"created_at": "created_us", "started_at": "started_us", "finished_at": "finished_us"}


class PersistedModel(BaseModel):
    """A document that outlives a release: unknown fields of a newer release are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Idempotency(PersistedModel):
    """An Idempotency-Key, and the digest of the request that was sent with it."""

    key: str
    fingerprint: str

    @property
    def digest(self) -> str:
        """The key as a short and harmless part of a Redis key."""
        return hashlib.sha256(self.key.encode()).hexdigest()


class NewJob(PersistedModel):
    """What is known of a job before it is created."""

    checkpoint: str
    spec: CompressionSpec
    files: tuple[FileInfo, ...] = ()
    # Those of the checkpoints that the spec names.
    calibration_files: tuple[FileInfo, ...] = ()
    base_files: tuple[FileInfo, ...] = ()
    warnings: tuple[str, ...] = ()
    owns_checkpoint: bool = False  # its checkpoint came in the same request, under an id of the service

    @property
    def reference_files(self) -> References[tuple[FileInfo, ...]]:
        """The files of the other checkpoints that the job needs."""
        named = {"calibration": self.calibration_files, "base": self.base_files}
        return References(**{field: named[field] for field in self.spec.references})


class JobRecord(NewJob):
    """A job; `version` grows with every transition, `fence` with every attempt."""

    id: str
    state: JobState
    version: int
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    attempt: int = 0
    fence: int = 0
    claim_token: str | None = None
    error: Problem | None = None
    summary: Totals | None = None
    result_fence: int | None = None
    single_file: str | None = None
    idempotency: Idempotency | None = None

    def document(self) -> str:
        """Return the text of job.json, without null values, which the spec would not accept."""
        return self.model_dump_json(exclude_none=True, indent=1)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job until the lease ends; every later call shows the fence."""

    record: JobRecord
    fence: int


@dataclass(frozen=True, slots=True)
class JobView:
    """A record, with progress and queue position, which change too often to be part of it."""

    record: JobRecord
    progress: Progress
    queue_position: int | None


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, newest first, and the cursor of the next page."""

    jobs: tuple[JobView, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How many jobs are in each state, and the age of the oldest queued job."""

    by_state: Mapping[JobState, int]
    oldest_queued_s: float | None


def new_job_id() -> str:
    """Return an id that cannot be guessed."""
    return "J" + secrets.token_hex(16)


def new_token(worker: str) -> str:
    """Return an id of one claim of a worker, by which a repeated claim is recognized."""
    return f"{worker}#{secrets.token_hex(8)}"


def rfc3339(microseconds: int) -> str:
    """Format microseconds since 1970, always with six digits, so that times sort as text."""
    time = EPOCH + timedelta(microseconds=microseconds)
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def microseconds(time: str) -> int:
    """Parse what `rfc3339` formatted."""
    return (datetime.fromisoformat(time) - EPOCH) // timedelta(microseconds=1)


def fixed_document(new: NewJob, job_id: str, idempotency: Idempotency | None) -> str:
    """Return the part of a record that never changes."""
    own = {"id": job_id} | ({"idempotency": idempotency.model_dump()} if idempotency else {})
    fixed = set(NewJob.model_fields)
    return json.dumps(new.model_dump(mode="json", include=fixed, exclude_none=True) | own)


def to_fields(record: JobRecord) -> dict[str, str]:
    """Return a record as the fields of its Redis hash."""
    document = json.loads(record.document())
    fixed = fixed_document(record, record.id, record.idempotency)
    fields = {"fixed": fixed, "checkpoint": record.checkpoint}
    fields |= record.spec.references
    if record.idempotency:
        fields["idempotency"] = record.idempotency.digest
    fields |= {name: str(document[name]) for name in PLAIN_FIELDS if name in document}
    fields |= {name: json.dumps(document[name]) for name in JSON_FIELDS if name in document}
    return fields | {
        to: str(microseconds(document[name])) for name, to in TIME_FIELDS.items() if name in document
    }


def from_fields(fields: Mapping[str, str]) -> JobRecord:
    """Return the record that the fields of a Redis hash hold."""
    document = json.loads(fields["fixed"])
    document |= {name: fields[name] for name in PLAIN_FIELDS if name in fields}
    document |= {name: json.loads(fields[name]) for name in JSON_FIELDS if name in fields}
    document |= {name: rfc3339(int(fields[of])) for name, of in TIME_FIELDS.items() if of in fields}
    return JobRecord.model_validate(document)


def job_view(answer: Sequence[Any]) -> JobView:
    """Parse the answer of read.lua: the fields of a job, and its place in the queue or -1."""
    flat, place = answer
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    record = from_fields(fields)
    return JobView(record, _progress(record, fields.get("progress")), place if place >= 0 else None)


def job_counts(answer: Sequence[Any]) -> JobCounts:
    """Parse the answer of counts.lua."""
    flat, oldest, now = answer
    waited_s = (int(now) - int(oldest[1])) / 1e6 if oldest else None
    return JobCounts(dict(zip(flat[::2], flat[1::2], strict=True)), waited_s)


def next_cursor(rest: Sequence[JobView]) -> str | None:
    """Return the creation time of the first job on the next page, which no other job shares."""
    return str(microseconds(rest[0].record.created_at)) if rest else None


def _progress(record: JobRecord, document: str | None) -> Progress:
    if record.summary is not None:
        total = record.summary.layers_factored + record.summary.layers_kept
        return Progress(layers_done=total, layers_total=total, layer=None, fraction=1.0)
    return Progress.model_validate_json(document) if document else NO_PROGRESS
