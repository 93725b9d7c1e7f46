"""Job records as clients see them."""

from schemas.job import TERMINAL, Job, JobList, Links
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
