"""A failed job is queued again, on its finished layers."""

import secrets
from pathlib import Path

from state.errors import CheckpointGone, FailureStays, JobNotFailed, TooManyJobs, UnreadableRecord
from state.jobs.creation import has_input
from state.jobs.records import JobRecord
from state.jobs.transitions import Transitions, present

# Problems with a lower status are of the input.
SERVER_FAULTS = 500


def check_resumable(root: Path, record: JobRecord) -> None:
    """Refuse a job that would fail again, since its record, its input or its checkpoint is at fault."""
    if not record.readable:
        raise UnreadableRecord
    if record.state != "failed":
        return
    if record.error is not None and record.error.status < SERVER_FAULTS:
        raise FailureStays(record.error.detail)
    if not has_input(root, record):
        raise CheckpointGone


def resume_job(transitions: Transitions, job_id: str) -> JobRecord:
    """Queue a failed job, or raise `JobNotFailed`, `CheckpointGone` or `TooManyJobs`."""
    token, most_waiting = secrets.token_hex(8), transitions.limits.most_waiting

    def act() -> JobRecord:
        answer = transitions.run_on("resume", job_id, token, most_waiting or "inf")
        if answer == "gone":
            raise CheckpointGone
        if answer == "full":
            raise TooManyJobs(most_waiting)
        if answer != "done":
            raise JobNotFailed(answer)
        return present(transitions.files.write_or_defer(job_id))

    return transitions.with_restore(act)
