"""Looks after jobs whose worker or message was lost, from the API's lifespan."""

import asyncio
import logging

from starlette.concurrency import run_in_threadpool

from service.deps import Services
from state.errors import StoreUnavailable

LEFT_OVER_S = 600.0

log = logging.getLogger("eckart.service")


async def reap_forever(services: Services) -> None:
    """Take every step at once and then at every turn; one that fails stops neither the other nor the next."""
    every_s = services.settings.reaper_s
    while True:
        for what, step in (("send jobs again", send_again), ("tidy up", tidy_up)):
            try:
                await run_in_threadpool(step, services)
            except StoreUnavailable:
                log.warning("the reaper cannot reach Redis; it tries again in %g s", every_s)
            except Exception:
                log.exception("the reaper failed to %s; it tries again in %g s", what, every_s)
        await asyncio.sleep(every_s)


def send_again(services: Services) -> None:
    """Queue jobs whose worker or message was lost."""
    for job_id in services.jobs.sweep():
        services.queue.send(job_id)
        services.metrics.requeued.inc()
        log.info("sent job %s again", job_id)


def tidy_up(services: Services) -> None:
    """Remove what killed uploads left."""
    services.checkpoints.sweep_parts(LEFT_OVER_S)
