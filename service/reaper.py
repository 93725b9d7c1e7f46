"""The reaper: a task of the API that queues lost jobs again (`JobStore.sweep`) and cleans up."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial

from starlette.concurrency import run_in_threadpool

from service.dependencies import Services
from state.errors import RedisUnavailable
from state.redis import eviction_warning

STALE_UPLOAD_S = 600.0
# Rarely: only a process that was killed leaves orphans, and finding them reads every manifest.
ORPHANS_EVERY_S = 3600.0

log = logging.getLogger("eckart.service")


async def run_reaper(services: Services) -> None:
    """Run a cycle at once and then every `reaper_s`."""
    steps: dict[str, Callable[[], object]] = {
        "look at Redis's settings": at_most_every(math.inf, partial(warn_of_eviction, services)),
        "sweep jobs": partial(sweep_jobs, services),
        "remove stale uploads": partial(services.checkpoints.sweep_parts, STALE_UPLOAD_S),
        "trim the cache": services.decompositions.trim,
        "remove orphans": at_most_every(ORPHANS_EVERY_S, services.checkpoints.remove_orphans),
    }
    while True:
        await run_cycle(steps)
        await asyncio.sleep(services.settings.reaper_s)


async def run_cycle(steps: Mapping[str, Callable[[], object]]) -> None:
    """Run every step; one that fails stops neither the others nor the next cycle."""
    for what, step in steps.items():
        try:
            await run_in_threadpool(step)
        except RedisUnavailable:
            log.warning("the reaper cannot reach Redis and will try again")
        except Exception:
            log.exception("the reaper failed to %s and will try again", what)


def warn_of_eviction(services: Services) -> None:
    """Log it if Redis may drop records of jobs."""
    if warning := eviction_warning(services.redis):
        log.warning("%s", warning)


def sweep_jobs(services: Services) -> None:
    """Send the messages of jobs whose worker or message was lost."""
    for job_id in services.jobs.sweep():
        services.queue.send(job_id)
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
