"""Comparing what is on the disk with what is known, and removing what nobody owns.

Processes that are killed leave such things. Nothing is removed that may be under way: it is old, and its lock
is free.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from service.dependencies import Services
from state.data_dir import DataDir
from state.errors import CheckpointInUse, CheckpointNotFound, FilesLocked

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
STALE_UPLOAD_S = 600.0

log = logging.getLogger("eckart.service")


def reconcile(services: Services) -> Counter[str]:
    """Restore what was lost and remove what nobody owns; return what was done, and how often."""
    done: Counter[str] = Counter()
    for found in _steps(services):
        # At once: a later step may fail, and the next reconciliation will not find this again.
        for what, count in (+found).items():
            services.metrics.reconciled(what, count)
        done += found
    if done:
        log.warning("put in order: %s", ", ".join(f"{count} of {what}" for what, count in done.items()))
    return done


def _steps(services: Services) -> Iterator[Counter[str]]:
    yield services.jobs.upkeep.reconcile(older_than_s=HOUR_S)
    yield Counter({"checkpoint": _remove_one_shots(services)})
    # A resumable upload may still take back a file that was not counted, until it expires.
    uncounted_s = max(DAY_S, 2 * HOUR_S * services.settings.upload_expiry_hours)
    yield Counter({"uncounted-file": services.checkpoints.remove_uncounted(uncounted_s)})
    yield Counter({"listed-checkpoint": services.checkpoints.correct_lists()})
    yield Counter({"part": services.checkpoints.sweep_parts(STALE_UPLOAD_S)})
    yield Counter({"expired-upload": services.resumable.sweep()})
    services.checkpoints.remove_orphans()


def _remove_one_shots(services: Services) -> int:
    """Delete checkpoints that came with a request whose job was never created, or is gone."""
    old = {
        (owner, name): services.of(owner)
        for owner in services.checkpoints.owners()
        for name in services.checkpoints.of(owner).old_one_shots(DAY_S)
    }
    named = services.jobs.upkeep.named_checkpoints() if old else frozenset()
    if named is None:
        log.warning("a job cannot be read, so no checkpoint is removed that came with a job")
        return 0
    removed = 0
    for (owner, name), own in old.items():
        if DataDir(services.settings.data_dir, owner).key(name) in named:
            continue
        with suppress(CheckpointInUse, CheckpointNotFound, FilesLocked):
            own.checkpoints.delete(name, unless_needed=partial(own.jobs.locked_for_deletion, name))
            removed += 1
    return removed
