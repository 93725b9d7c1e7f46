"""Jobs and checkpoints as lists of plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.plain_text import listing, plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eckart.types import ListedCheckpoint, ListedJob

JOB_HEADS = ("job", "state", "layers", "saved", "error", "created", "checkpoint")
CHECKPOINT_HEADS = ("checkpoint", "files", "bytes", "stored")


def jobs_list(jobs: Iterable[ListedJob]) -> str:
    """Show a row for each job; why one failed stands below them."""
    shown = list(jobs)
    rows = [
        (
            plain(job.id),
            job.state,
            f"{job.progress.layers_done}/{job.progress.layers_total}",
            f"{1 - job.summary.bytes_after / job.summary.bytes_before:.1%}"
            if job.summary and job.summary.bytes_before
            else "-",
            f"{job.summary.relative_error:#.3g}" if job.summary else "-",
            job.created_at or "-",
            plain(job.checkpoint),
        )
        for job in shown
    ]
    failures = [f"{plain(job.id)}: {plain(job.error.detail)}" for job in shown if job.error]
    return "\n".join([*listing(JOB_HEADS, rows), *([""] if failures else []), *failures]) + "\n"


def checkpoints_list(checkpoints: Iterable[ListedCheckpoint]) -> str:
    """Show a row for each stored checkpoint."""
    rows = [
        (
            plain(checkpoint.id),
            str(len(checkpoint.files)) if checkpoint.complete else f"{len(checkpoint.files)}, incomplete",
            f"{checkpoint.bytes:,}",
            checkpoint.stored_at or "-",
        )
        for checkpoint in checkpoints
    ]
    return "\n".join(listing(CHECKPOINT_HEADS, rows)) + "\n"
