"""What a script says of a job, as a view."""

from collections.abc import Sequence
from typing import Any

from schemas.job import NO_PROGRESS, Progress
from state.records import JobCounts, JobRecord, JobView, from_fields, microseconds


def job_view(answer: Sequence[Any]) -> JobView:
    """Read a job's fields and its place in the queue, or -1."""
    flat, place = answer
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    record = from_fields(fields)
    return JobView(record, _progress(record, fields.get("progress")), place if place >= 0 else None)


def job_counts(answer: Sequence[Any]) -> JobCounts:
    """Read how many jobs there are in each state."""
    flat, oldest, now = answer
    waited_s = (int(now) - int(oldest[1])) / 1e6 if oldest else None
    return JobCounts(dict(zip(flat[::2], flat[1::2], strict=True)), waited_s)


def next_cursor(rest: Sequence[JobView]) -> str | None:
    """Name the first job of the next page by its time, which no other job has."""
    return str(microseconds(rest[0].record.created_at)) if rest else None


def _progress(record: JobRecord, document: str | None) -> Progress:
    if record.summary is not None:
        total = record.summary.layers_factored + record.summary.layers_kept
        return Progress(layers_done=total, layers_total=total, layer=None, fraction=1.0)
    return Progress.model_validate_json(document) if document else NO_PROGRESS
