"""Removing jobs that have been kept long enough, and checkpoints that came with jobs which are gone."""

import time
from collections.abc import Callable

from service.dependencies import Services
from service.jobs.deletion import delete_checkpoint
from state.errors import CheckpointInUse, CheckpointNotFound, FilesLocked

# A clock is often wrong when a machine starts, and is corrected within minutes.
STEADY_S = 600.0
TOLERANCE_S = 60.0


class SteadyClock:
    """Tells whether a clock has gone evenly for a while: one that was just set makes no job look old."""

    def __init__(
        self, *, steady_s: float = STEADY_S, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._steady_s = steady_s
        self._monotonic = monotonic
        self._offset_s: float | None = None
        self._since_s = 0.0

    def is_steady(self, now_s: float) -> bool:
        """Look at the clock, which shows `now_s`."""
        monotonic_s = self._monotonic()
        offset_s = now_s - monotonic_s
        if self._offset_s is None or abs(offset_s - self._offset_s) > TOLERANCE_S:
            self._since_s, self._offset_s = monotonic_s, offset_s
        return monotonic_s - self._since_s >= self._steady_s


def remove_expired(services: Services, clock: SteadyClock) -> int:
    """Remove jobs that ended longer ago than `ECKART_RETENTION_HOURS`; return their number."""
    if services.settings.retention_s is None or not clock.is_steady(services.jobs.upkeep.now_s()):
        return 0
    removed = services.jobs.upkeep.remove_expired()
    services.metrics.reconciled("expired-job", removed)
    return removed


def remove_unowned(services: Services) -> int:
    """Delete checkpoints whose own jobs are gone and that no job needs; return their number."""
    removed = 0
    for owner, checkpoint_id in services.jobs.upkeep.unowned_checkpoints():
        try:
            delete_checkpoint(services.of(owner), checkpoint_id)
            removed += 1
        except (CheckpointInUse, FilesLocked):
            continue
        except CheckpointNotFound:
            pass
        services.jobs.upkeep.forget_unowned(owner, checkpoint_id)
    services.metrics.reconciled("checkpoint", removed)
    return removed
