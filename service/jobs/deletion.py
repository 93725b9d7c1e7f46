"""Deleting jobs and checkpoints, which a job may need or may own."""

from contextlib import suppress
from functools import partial

from service.dependencies import Services
from state.errors import CheckpointInUse, CheckpointNotFound


def delete_job(services: Services, job_id: str) -> None:
    """Cancel and delete a job, and the checkpoint that came in its own request.

    The record goes last, so that the request can be repeated if anything before it fails.
    """
    record = services.jobs.cancel(job_id)
    if record.owns_checkpoint:
        with suppress(CheckpointInUse, CheckpointNotFound):
            delete_checkpoint(services, record.checkpoint)
    services.quotas.deleted(services.owner, services.jobs.delete(job_id))


def delete_checkpoint(services: Services, checkpoint_id: str) -> None:
    """Delete a checkpoint's files, unless a job needs them."""
    unless_needed = partial(services.jobs.locked_for_deletion, checkpoint_id)
    freed = services.checkpoints.delete(checkpoint_id, unless_needed=unless_needed)
    services.quotas.deleted(services.owner, freed)
