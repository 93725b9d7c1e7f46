"""Looks after jobs whose worker or message was lost, from the API's lifespan."""

import asyncio
import logging

from starlette.concurrency import run_in_threadpool

from service.deps import Services
from state.errors import StoreUnavailable

LEFT_OVER_S = 600.0

log = logging.getLogger("eckart.service")


async def reap_forever(services: Services) -> None:
    """Sweep at once and then at every turn; a store that is away is tried again at the next."""
    every_s = services.settings.reaper_s
    while True:
        try:
            services.metrics.requeued.inc(await run_in_threadpool(reap, services))
        except StoreUnavailable:
            log.warning("the reaper cannot reach Redis; it tries again in %g s", every_s)
        except Exception:
            log.exception("the reaper failed; it tries again in %g s", every_s)
        await asyncio.sleep(every_s)


def reap(services: Services) -> int:
    """Remove what killed uploads left, send again what needs it, and say how many jobs that were."""
    services.checkpoints.sweep_parts(LEFT_OVER_S)
    due = services.jobs.sweep()
    for job_id in due:
        services.queue.send(job_id)
        log.info("sent job %s again", job_id)
    return len(due)
