"""Jobs and checkpoints as clients see them."""

from schemas.checkpoint import Checkpoint
from schemas.format.metadata import factored_names
from schemas.job import TERMINAL, Job, JobList, Links
from schemas.planning.documents import checkpoint_document
from state.checkpoints import StoredCheckpoint
from state.records import JobPage, JobView

RETRY_AFTER_S = 1


def job_document(view: JobView) -> Job:
    """Show a job."""
    record = view.record
    here = f"/v1/jobs/{record.id}"
    return Job(
        id=record.id,
        state=record.state,
        checkpoint=record.checkpoint,
        spec=record.spec,
        progress=view.progress,
        attempt=record.attempt,
        queue_position=view.queue_position,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        expires_at=None,
        warnings=record.warnings,
        error=record.error,
        summary=record.summary,
        links=Links(
            self=here,
            report=f"{here}/report",
            checkpoint=f"{here}/checkpoint",
            files=f"{here}/files/{{filename}}",
            cancel=f"{here}/cancel",
        ),
    )


def job_list(page: JobPage) -> JobList:
    """Show a page of jobs."""
    return JobList(jobs=tuple(job_document(view) for view in page.jobs), next_cursor=page.next_cursor)


def retry_after(view: JobView) -> dict[str, str]:
    """Say when to ask again, until the job has ended."""
    return {} if view.record.state in TERMINAL else {"Retry-After": str(RETRY_AFTER_S)}


def stored_document(stored: StoredCheckpoint) -> Checkpoint:
    """Show a checkpoint with all its tensors."""
    factored = factored_names(header.metadata for header in stored.headers.values())
    return checkpoint_document(stored.id, stored.files, stored.missing, stored.tensors, factored=factored)
