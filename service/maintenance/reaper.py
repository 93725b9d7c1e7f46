"""The reaper: tasks of the API that queue lost jobs again (`JobStore.sweep`) and clean up."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial

from starlette.concurrency import run_in_threadpool

from service.dependencies import Services
from service.maintenance.reconciliation import STALE_UPLOAD_S, reconcile
from service.maintenance.retention import SteadyClock, remove_expired, remove_unowned
from service.maintenance.turns import SWEEP, Turns
from state.errors import FilesLocked, RedisUnavailable
from state.mounts import lock_warning
from state.redis import eviction_warning

FAILED_LAYERS_EVERY_S = 600.0
LAST_TURN_S = 5.0

log = logging.getLogger("eckart.service")

Steps = Mapping[str, Callable[[], object]]


async def run_reaper(services: Services) -> None:
    """Take every step at once and then every `reaper_s`."""
    steps: Steps = {
        "look at Redis's settings": at_most_every(math.inf, partial(warn_of_eviction, services)),
        "look at the disk's locks": at_most_every(math.inf, partial(warn_of_local_locks, services)),
        SWEEP: partial(sweep_jobs, services),
        "write job.json where that failed": services.jobs.upkeep.write_deferred,
        "remove stale uploads": partial(services.checkpoints.sweep_parts, STALE_UPLOAD_S),
        "remove expired uploads": services.resumable.sweep,
        "remove expired jobs": partial(remove_expired, services, SteadyClock()),
        "remove checkpoints without jobs": partial(remove_unowned, services),
        "trim the cache": services.decompositions.trim,
        "remove layers of failed jobs": at_most_every(
            FAILED_LAYERS_EVERY_S,
            partial(
                services.jobs.upkeep.remove_failed_layers,
                older_than_s=services.settings.failed_layers_hours * 3600,
            ),
        ),
        "reconcile": at_most_every(services.settings.reconcile_s, partial(reconcile, services)),
    }
    await run_steps(steps, services.turns, every_s=services.settings.reaper_s)


async def run_steps(steps: Steps, turns: Turns, *, every_s: float) -> None:
    """Repeat each step in a task of its own: one that fails, or never ends, holds up no other."""
    for what in steps:
        turns.begin(what)
    async with asyncio.TaskGroup() as group:
        for what, step in steps.items():
            group.create_task(_repeat(what, step, turns, every_s=every_s))


async def _repeat(what: str, step: Callable[[], object], turns: Turns, *, every_s: float) -> None:
    while True:
        try:
            await _take(what, step, limit_s=turns.limit_s)
            turns.end(what)
        except RedisUnavailable:
            log.warning("the reaper cannot reach Redis and will try again")
        except FilesLocked:
            log.warning("the reaper cannot %s, since a process keeps files locked", what)
        except Exception:
            log.exception("the reaper failed to %s and will try again", what)
        await asyncio.sleep(every_s)


async def _take(what: str, step: Callable[[], object], *, limit_s: float) -> None:
    """Wait for one turn of a step, and log it if it is late; a thread cannot be ended."""
    turn = asyncio.ensure_future(run_in_threadpool(step))
    try:
        await asyncio.wait([turn], timeout=limit_s)
        if not turn.done():
            log.error("the reaper has tried to %s for %g s and still waits", what, limit_s)
            await asyncio.wait([turn])
    finally:
        # When the service stops, a turn that has begun is waited for, but not one that never ends.
        await asyncio.wait([turn], timeout=LAST_TURN_S)
    await turn


def warn_of_eviction(services: Services) -> None:
    """Log it if Redis may drop records of jobs."""
    if warning := eviction_warning(services.redis):
        log.warning("%s", warning)


def warn_of_local_locks(services: Services) -> None:
    """Log it if other machines do not see the locks that this one takes."""
    if warning := lock_warning(services.settings.data_dir):
        log.warning("%s", warning)


def sweep_jobs(services: Services) -> None:
    """Send the messages of jobs whose worker or message was lost."""
    due = services.jobs.upkeep.sweep()
    services.queue.send_first(due)
    for job_id in due:
        services.metrics.queued_again.inc()
        log.info("job %s: its message is sent again", job_id)


def at_most_every(interval_s: float, step: Callable[[], object]) -> Callable[[], None]:
    """Throttle a step: after a success it does not run again for `interval_s`."""
    due_s = -math.inf

    def run_if_due() -> None:
        nonlocal due_s
        if time.monotonic() >= due_s:
            step()
            due_s = time.monotonic() + interval_s

    return run_if_due
