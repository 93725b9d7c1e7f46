"""A job is registered in Redis, which keeps its checkpoint from deletion, and then written to job.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from state.checkpoints.manifest import has_files
from state.data_dir import DataDir
from state.errors import CheckpointGone, IdempotencyMismatch, TooManyJobs
from state.jobs.records import Idempotency, JobRecord, NewJob, fixed_document
from state.jobs.transitions import Transitions, present


def create_job(
    transitions: Transitions, job_id: str, new: NewJob, idempotency: Idempotency | None
) -> JobRecord:
    """Create a job under a new id, or return the one that the same idempotency key created before."""
    digest, fingerprint = (idempotency.digest, idempotency.fingerprint) if idempotency else ("", "")
    fixed = fixed_document(new, job_id, idempotency)
    most_waiting = transitions.limits.most_waiting
    with transitions.files.lock(job_id):
        named = [word for reference in new.references.items() for word in reference]
        create = (
            "create",
            job_id,
            new.checkpoint,
            digest,
            fingerprint,
            new.owner,
            most_waiting or "inf",
            "1" if new.owns_checkpoint else "",
        )
        answer = str(transitions.scripts.run(*create, *named))
        if answer == "created":
            return _make_durable(transitions, job_id, new, fixed)
    if answer == "conflict":
        raise IdempotencyMismatch
    if answer == "gone":
        raise CheckpointGone
    if answer == "full":
        raise TooManyJobs(most_waiting)
    return present(transitions.files.write(answer.removeprefix("replay:")))


def has_input(root: Path, job: NewJob) -> bool:
    """Whether the checkpoints that a job needs are what they were when it was planned."""
    needed = [(job.checkpoint, job.files)]
    needed += [(job.references[field], files) for field, files in job.reference_files.given()]
    paths = DataDir(root, job.owner)
    return all(has_files(paths, name, files) for name, files in needed)


def _make_durable(transitions: Transitions, job_id: str, new: NewJob, fixed: Mapping[str, Any]) -> JobRecord:
    files = transitions.files
    try:
        if not has_input(transitions.paths.root, new):
            # Deleted or replaced after the job was planned and before it was registered.
            raise CheckpointGone  # noqa: TRY301 - undone like every other failure
        record = present(files.create_locked(job_id, fixed))
        files.note_created(job_id)
    except BaseException:
        files.undo_locked(job_id)
        raise
    return record
