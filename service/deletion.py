"""Deleting a job, and with it the checkpoint that came in the same request."""

from contextlib import suppress

from service.deps import Services
from state.errors import CheckpointInUse, CheckpointNotFound


def delete_job(services: Services, job_id: str) -> None:
    """Remove the record last: whatever fails before, the same request can be repeated."""
    record = services.jobs.cancel(job_id)
    if record.one_shot:
        with suppress(CheckpointInUse, CheckpointNotFound):
            delete_checkpoint(services, record.checkpoint)
    services.jobs.delete(job_id)


def delete_checkpoint(services: Services, checkpoint_id: str) -> None:
    """Remove all its files, unless a job needs them."""
    with services.jobs.deleting_checkpoint(checkpoint_id):
        services.checkpoints.delete(checkpoint_id)
