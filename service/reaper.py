"""Looks after jobs whose worker or message was lost, from the API's lifespan."""

import asyncio
import logging

from starlette.concurrency import run_in_threadpool

from service.metrics import Metrics
from state.errors import StoreUnavailable
from state.jobs import JobStore
from state.queue import JobQueue

log = logging.getLogger("eckart.service")


async def reap_forever(jobs: JobStore, queue: JobQueue, metrics: Metrics, *, every_s: float) -> None:
    """Sweep at once and then at every turn; a store that is away is tried again at the next."""
    while True:
        try:
            metrics.requeued.inc(await run_in_threadpool(reap, jobs, queue))
        except StoreUnavailable:
            log.warning("the reaper cannot reach Redis; it tries again in %g s", every_s)
        except Exception:
            log.exception("the reaper failed; it tries again in %g s", every_s)
        await asyncio.sleep(every_s)


def reap(jobs: JobStore, queue: JobQueue) -> int:
    """Send again what needs it, and say how many that were."""
    due = jobs.sweep()
    for job_id in due:
        queue.send(job_id)
        log.info("sent job %s again", job_id)
    return len(due)
