"""Taking back files that a refused form had already published."""

import contextlib
import logging
from collections.abc import Collection

from state.checkpoints import CheckpointStore
from state.errors import CheckpointInUse, StoreUnavailable
from state.jobs import JobStore

log = logging.getLogger("eckart.service")


def withdraw(
    checkpoints: CheckpointStore, jobs: JobStore, checkpoint_id: str, names: Collection[str]
) -> None:
    """Remove these files, unless a job has begun to need them."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(jobs.deleting_checkpoint(checkpoint_id))
        except CheckpointInUse:
            log.warning("files of a refused form stay, for a job needs checkpoint %s", checkpoint_id)
            return
        except StoreUnavailable:
            # Redis is away, so no job can be made either.
            log.info("files of a refused form are taken back without asking Redis")
        checkpoints.discard(checkpoint_id, names)
