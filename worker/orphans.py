"""Jobs of killed processes of this host: a process that starts gives them back before their leases end."""

import logging
import socket

from state.errors import RedisUnavailable
from state.jobs.queue import JobQueue
from state.jobs.store import JobStore

log = logging.getLogger(__name__)


def give_back_orphans(jobs: JobStore, redis_url: str, *, lost_messages: bool = False) -> None:
    """Queue jobs again whose attempts have died on this host, and send their messages at once.

    With `lost_messages` also those that a killed worker took from the queue and did not begin with; one that
    is sent twice is harmless. Whatever fails here is made up for by the lease and the reaper.
    """
    try:
        found = jobs.give_back_orphans(socket.gethostname())
        if found:
            log.info("the processes of %s have died; they return to the queue", ", ".join(found))
        elif not lost_messages:
            return
        queue = JobQueue(redis_url)
        queue.send_first(jobs.upkeep.sweep(at_once=lost_messages))
        queue.close()
    except RedisUnavailable as error:
        log.warning("jobs of dead processes return to the queue when their leases end: %s", error)
    except Exception:
        log.exception("jobs of dead processes return to the queue when their leases end")
