"""The job record: job.json holds all of it, and a Redis hash what transitions and lists need.

The hash is made from the document, and the document from the hash and what job.json held before, without a
model, so that what another release added survives. A model reads the document only where its content is
needed, and then as far as it can (`parse_record`).
"""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from schemas.base import PersistedModel
from schemas.checkpoint import FileInfo
from schemas.job import NO_PROGRESS, JobState, Progress, Waiting
from schemas.planning.references import References
from schemas.problem import Problem
from schemas.report import Totals
from schemas.spec import REFERENCES
from schemas.webhook import Delivery
from state.times import microseconds, rfc3339

JOB_ID = re.compile(r"J[0-9a-f]{32}")

# The fields that a transition may change; the rest of a record is fixed when the job is created.
PLAIN_FIELDS = (
    "state",
    "version",
    "attempt",
    "attempts_without_progress",
    "furthest",
    "fence",
    "claim_token",
    "result_fence",
    "single_file",
)
NUMBER_FIELDS = frozenset(
    {"version", "attempt", "attempts_without_progress", "furthest", "fence", "result_fence"}
)
JSON_FIELDS = frozenset({"error", "summary", "late_warnings"})
TIME_FIELDS = {"created_at": "created_us", "started_at": "started_us", "finished_at": "finished_us"}
CHANGING = frozenset({*PLAIN_FIELDS, *JSON_FIELDS, *TIME_FIELDS})
# Lower than that of any record, so that each replaces it.
DAMAGED_VERSION = -1
# What stands for a field that cannot be read.
UNREADABLE = {
    "id": "",
    "checkpoint": "",
    "spec": {},
    "state": "failed",
    "version": 0,
    "created_at": "1970-01-01T00:00:00.000000Z",
}


class Idempotency(PersistedModel):
    """An Idempotency-Key, and the digest of the request that was sent with it."""

    key: str
    fingerprint: str

    @property
    def digest(self) -> str:
        """The key as a short and harmless part of a Redis key."""
        return hashlib.sha256(self.key.encode()).hexdigest()


class StoredWebhook(PersistedModel):
    """Where a job's end is told; `root_path` is where its client reached the service."""

    url: str
    events: tuple[str, ...]
    root_path: str = ""


class NewJob(PersistedModel):
    """What is known of a job before it is created; `spec` is a document that only its users parse."""

    checkpoint: str
    spec: dict[str, Any]
    files: tuple[FileInfo, ...] = ()
    # Those of the checkpoints that the spec names.
    calibration_files: tuple[FileInfo, ...] = ()
    base_files: tuple[FileInfo, ...] = ()
    warnings: tuple[str, ...] = ()
    webhook: StoredWebhook | None = None
    owner: str = ""  # the name of the key that it was created with; '' without keys
    owns_checkpoint: bool = False  # its checkpoint came in the same request, under an id of the service

    @property
    def references(self) -> dict[str, str]:
        """The ids of the other checkpoints that the spec names, by its fields."""
        return _references(self.spec)

    @property
    def reference_files(self) -> References[tuple[FileInfo, ...]]:
        """The files of the other checkpoints that the job needs."""
        named = {"calibration": self.calibration_files, "base": self.base_files}
        return References(**{field: named[field] for field in self.references})


class JobRecord(NewJob):
    """A job; `version` grows with every transition, `fence` with every attempt."""

    id: str
    state: JobState
    version: int
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    attempt: int = 0
    # Since one got further than all before it; `furthest` is the share of the work that was done then.
    attempts_without_progress: int = 0
    furthest: float = 0.0
    fence: int = 0
    claim_token: str | None = None
    error: Problem | None = None
    summary: Totals | None = None
    late_warnings: tuple[str, ...] = ()  # what only the work showed
    result_fence: int | None = None
    single_file: str | None = None
    idempotency: Idempotency | None = None
    # False: some field is from another release, or damaged, and has a stand-in here.
    readable: bool = Field(default=True, exclude=True)


class _Essentials(PersistedModel):
    """What the transitions need of a record, whatever else it holds."""

    id: str
    checkpoint: str
    state: JobState
    version: int
    created_at: str
    attempt: int = 0
    fence: int = 0
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job until the lease ends; every later call shows the fence."""

    record: JobRecord
    fence: int


@dataclass(frozen=True, slots=True)
class JobView:
    """A record, with what changes too often to be part of it, or without its state."""

    record: JobRecord
    progress: Progress
    queue_position: int | None
    deliveries: tuple[Delivery, ...] = ()
    # When the job may be removed; None: not before it has ended, or never.
    expires_at: str | None = None
    waiting: Waiting | None = None
    # Whether job.json has the last transition.
    on_disk: bool = True


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, newest first, and the cursor of the next page."""

    jobs: tuple[JobView, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How many jobs are in each state, the age of the oldest queued job, and the longest of all steps."""

    by_state: Mapping[JobState, int]
    oldest_queued_s: float | None
    longest_step_s: float


def new_job_id() -> str:
    """Return an id that cannot be guessed."""
    return "J" + secrets.token_hex(16)


def new_token(worker: str) -> str:
    """Return an id of one claim of a worker, by which a repeated claim is recognized."""
    return f"{worker}#{secrets.token_hex(8)}"


def shortened(text: str, most_bytes: int = 200) -> str:
    """Return a text as Redis may keep it for each job."""
    raw = text.encode(errors="replace")
    return text if len(raw) <= most_bytes else raw[: most_bytes - 3].decode(errors="ignore") + "…"


def fixed_document(new: NewJob, job_id: str, idempotency: Idempotency | None) -> dict[str, Any]:
    """Return the part of a record that never changes, which may be large: it is in job.json only."""
    own = {"id": job_id} | ({"idempotency": idempotency.model_dump()} if idempotency else {})
    fixed = set(NewJob.model_fields)
    return new.model_dump(mode="json", include=fixed, exclude_none=True) | own


def to_fields(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of the Redis hash of a document; a ValueError if the essentials are missing."""
    essentials = _Essentials.model_validate(document)
    fields = {"checkpoint": essentials.checkpoint} | _references(document.get("spec"))
    if essentials.owner:
        fields["owner"] = essentials.owner
    if document.get("owns_checkpoint") is True:
        fields["owns_checkpoint"] = "1"
    if digest := idempotency_of(document):
        fields["idempotency"] = digest.digest
    document = {**document, "attempt": essentials.attempt, "fence": essentials.fence}
    fields |= {name: str(document[name]) for name in PLAIN_FIELDS if document.get(name) is not None}
    fields |= {name: _json(document[name]) for name in JSON_FIELDS if document.get(name) is not None}
    return fields | {
        to: str(microseconds(document[name]))
        for name, to in TIME_FIELDS.items()
        if document.get(name) is not None
    }


def to_document(fields: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a Redis hash, with all that never changes from a document known before."""
    document = {name: value for name, value in known.items() if name not in CHANGING}
    document |= {name: fields[name] for name in (*PLAIN_FIELDS, "checkpoint", "owner") if name in fields}
    document |= {name: _parsed(fields[name]) for name in JSON_FIELDS | NUMBER_FIELDS if name in fields}
    with suppress(ValueError):
        document |= {name: rfc3339(int(fields[of])) for name, of in TIME_FIELDS.items() if of in fields}
    return document


def parse_record(document: Mapping[str, Any]) -> JobRecord:
    """Read a document; what cannot be read has a stand-in, and the record then is not `readable`."""
    try:
        return JobRecord.model_validate(document)
    except ValidationError as error:
        bad = {each["loc"][0] for each in error.errors()}
        rest = {name: value for name, value in document.items() if name not in bad}
        return JobRecord.model_validate(UNREADABLE | rest | {"readable": False})


def idempotency_of(document: Mapping[str, Any]) -> Idempotency | None:
    """Return the key that a document names, if it can be read."""
    with suppress(ValidationError):
        return Idempotency.model_validate(document.get("idempotency"))
    return None


def damaged_fields(created_us: int, result_fence: int | None, owner: str) -> dict[str, str]:
    """Return what Redis holds of a job whose job.json is damaged; any record that can be read replaces it."""
    state = "failed" if result_fence is None else "succeeded"
    time = str(created_us)
    fields = {"state": state, "version": str(DAMAGED_VERSION)}
    fields |= {"attempt": "0", "fence": str(result_fence or 0), "created_us": time, "finished_us": time}
    if owner:
        fields["owner"] = owner
    return fields if result_fence is None else fields | {"result_fence": str(result_fence)}


def _references(spec: object) -> dict[str, str]:
    named = {field: spec.get(field) for field in REFERENCES} if isinstance(spec, dict) else {}
    return {field: name for field, name in named.items() if isinstance(name, str)}


def _json(value: object) -> str:
    """Return the JSON of a value as short as it is when a transition brings it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def job_view(answer: Sequence[Any], known: Mapping[str, Any]) -> JobView:
    """Parse the answer of read.lua beside job.json."""
    flat, place, is_dirty = answer
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    record = parse_record(to_document(fields, known))
    return JobView(
        record,
        _progress(record, fields.get("progress")),
        place if place >= 0 else None,
        waiting=_waiting(fields),
        on_disk=not is_dirty,
    )


def listed_view(answer: Sequence[Any]) -> JobView:
    """Parse an entry of the answer of page.lua; the record has an empty spec, and no files or warnings."""
    job_id, *rest = answer
    return job_view(rest, {"id": job_id, "spec": {}})


def job_counts(answer: Sequence[Any]) -> JobCounts:
    """Parse the answer of counts.lua."""
    flat, oldest, now, step = answer
    waited_s = (int(now) - int(oldest[1])) / 1e6 if oldest else None
    longest_s = (int(now) - int(float(step[1]))) / 1e6 if step else 0.0
    return JobCounts(dict(zip(flat[::2], flat[1::2], strict=True)), waited_s, longest_s)


def next_cursor(rest: Sequence[JobView]) -> str | None:
    """Return the creation time of the first job on the next page, which no other job shares."""
    return str(microseconds(rest[0].record.created_at)) if rest else None


def _progress(record: JobRecord, document: str | None) -> Progress:
    if record.summary is not None:
        total = record.summary.layers_factored + record.summary.layers_kept
        return Progress(layers_done=total, layers_total=total, layer=None, fraction=1.0)
    with suppress(ValidationError):
        return Progress.model_validate_json(document or "")
    return NO_PROGRESS


def _waiting(fields: Mapping[str, str]) -> Waiting | None:
    with suppress(KeyError, TypeError, ValueError):
        at = rfc3339(int(fields["next_attempt_us"]))
        return Waiting.model_validate(json.loads(fields["waits_for"]) | {"next_attempt_at": at})
    return None
