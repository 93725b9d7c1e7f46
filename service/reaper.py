"""Looks after jobs whose worker or message was lost, from the API's lifespan."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial

from starlette.concurrency import run_in_threadpool

from service.dependencies import Services
from state.errors import StoreUnavailable

LEFT_OVER_S = 600.0
# Only a process that was killed leaves orphans, and to find them every manifest is read.
ORPHANS_S = 3600.0

log = logging.getLogger("eckart.service")


async def reap_forever(services: Services) -> None:
    """Take a turn at once and then again and again."""
    steps: dict[str, Callable[[], None]] = {
        "send jobs again": partial(send_again, services),
        "tidy up": partial(tidy_up, services),
        "trim the cache": services.decompositions.trim,
        "remove orphans": seldom(services.checkpoints.remove_orphans, every_s=ORPHANS_S),
    }
    while True:
        await take_turn(steps)
        await asyncio.sleep(services.settings.reaper_s)


async def take_turn(steps: Mapping[str, Callable[[], None]]) -> None:
    """Take every step; one that fails stops neither the others nor the next turn."""
    for what, step in steps.items():
        try:
            await run_in_threadpool(step)
        except StoreUnavailable:
            log.warning("the reaper cannot reach Redis; it tries again")
        except Exception:
            log.exception("the reaper failed to %s; it tries again", what)


def send_again(services: Services) -> None:
    """Queue jobs whose worker or message was lost."""
    for job_id in services.jobs.sweep():
        services.queue.send(job_id)
        services.metrics.requeued.inc()
        log.info("sent job %s again", job_id)


def tidy_up(services: Services) -> None:
    """Remove what killed uploads left."""
    services.checkpoints.sweep_parts(LEFT_OVER_S)


def seldom(step: Callable[[], None], *, every_s: float) -> Callable[[], None]:
    """Return a step that is taken at once, and then not again for so long."""
    due_s = -math.inf

    def take() -> None:
        nonlocal due_s
        if time.monotonic() >= due_s:
            step()
            due_s = time.monotonic() + every_s

    return take
