"""Delivering webhooks: the messages of jobs that have ended, each until it is taken or a day has passed."""

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from schemas.job import TERMINAL
from schemas.webhook import Delivery
from service.jobs.status import job_links
from service.webhooks.hosts import netloc_of
from service.webhooks.sender import Outcome, WebhookSender
from state.errors import FilesLocked, JobNotFound, RedisUnavailable
from state.jobs.records import JobView
from state.jobs.store import JobStore
from state.jobs.webhooks import WebhookFiles
from state.times import microseconds, rfc3339

MINUTE_S, HOUR_S = 60.0, 3600.0
# The pauses between attempts, over a day in all.
PAUSES_S = (5.0, 5 * MINUTE_S, 30 * MINUTE_S, 2 * HOUR_S, 5 * HOUR_S, 10 * HOUR_S, 14 * HOUR_S)
# So much longer at most, so that a receiver that comes back does not get everything at once.
JITTER = 0.2
LOOK_EVERY_S = 1.0
AT_ONCE = 64
# A slow receiver fills its own places and no others.
AT_ONCE_PER_HOST = 4
# Attempts that a job shows; only one that was resumed many times has more.
MOST_KEPT = 50
# When to look again at a job that is gone or unreadable, or try again where the attempt is not recorded.
LATER_S = 60.0
# The mark of a job whose creation was broken off.
ORPHANED_AFTER_S = HOUR_S

log = logging.getLogger("eckart.service")


@dataclass(frozen=True, slots=True)
class Due:
    """A message that is to be sent now."""

    job_id: str
    message_id: str
    owner: str
    url: str
    host: str
    body: bytes
    deliveries: tuple[Delivery, ...]

    @property
    def attempt(self) -> int:
        return 1 + len(_of(self.message_id, self.deliveries))


def _of(message_id: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
    return [each for each in deliveries if each.message == message_id]


class WebhookDelivery:
    """Looks for messages that are due, and sends them, some at a time."""

    def __init__(
        self,
        jobs: JobStore,
        files: WebhookFiles,
        sender: WebhookSender,
        *,
        count: Callable[[str], object],
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        """Deliver for jobs of all owners; `count` is told the outcome of each attempt."""
        self._jobs = jobs
        self._files = files
        self._sender = sender
        self._count = count
        self._pauses_s = pauses_s
        self._next_s: dict[str, float] = {}
        self._sending: dict[str, str] = {}

    async def run(self) -> None:
        """Deliver until canceled, in one process at a time: others take over when it ends."""
        with ExitStack() as held:
            while not await self._has_lock(held):  # noqa: ASYNC110 - a lock of other processes
                await asyncio.sleep(LOOK_EVERY_S)
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._begin_due(group)
                    await asyncio.sleep(LOOK_EVERY_S)

    async def _has_lock(self, held: ExitStack) -> bool:
        try:
            await run_in_threadpool(held.enter_context, self._files.lock())
        except FilesLocked:
            return False
        except Exception:
            log.exception("webhooks cannot be delivered yet")
            return False
        return True

    async def _begin_due(self, group: asyncio.TaskGroup) -> None:
        try:
            due = await run_in_threadpool(self.due)
        except RedisUnavailable:
            log.warning("webhooks wait until Redis can be reached")
        except Exception:
            log.exception("webhooks cannot be looked for, and will be again")
        else:
            busy = Counter(self._sending.values())
            for each in due:
                if len(self._sending) < AT_ONCE and busy[each.host] < AT_ONCE_PER_HOST:
                    busy[each.host] += 1
                    self._sending[each.job_id] = each.host
                    group.create_task(self._deliver(each))

    def due(self) -> list[Due]:
        """Return the messages that are to be sent now; this reads the disk and Redis."""
        now = time.time()
        marked = self._files.marked()
        waiting = [
            job_id for job_id in marked if job_id not in self._sending and self._next_s.get(job_id, 0) <= now
        ]
        found = (self._look(job_id, now) for job_id in self._jobs.not_known_unfinished(waiting))
        return [each for each in found if each is not None]

    def _look(self, job_id: str, now: float) -> Due | None:
        try:
            view = self._jobs.view(job_id)
        except JobNotFound:
            self._next_s[job_id] = now + LATER_S
            if self._files.marked_for_s(job_id) > ORPHANED_AFTER_S:
                self._forget(job_id)
            return None
        record = view.record
        if record.state not in TERMINAL:
            return None
        if not record.readable:
            self._next_s[job_id] = now + LATER_S
            return None
        tried = _of(message_id(view), view.deliveries)
        if record.webhook is None or (tried and tried[-1].next_at is None):
            self._forget(job_id)
            if self._jobs.view(job_id).record.version != record.version:  # it was resumed just now
                self._files.mark(job_id)
            return None
        self._next_s[job_id] = _seconds(tried[-1].next_at) if tried and tried[-1].next_at else now
        if self._next_s[job_id] > now:
            return None
        url, own_id = record.webhook.url, message_id(view)
        return Due(job_id, own_id, record.owner, url, netloc_of(url), message(view), view.deliveries)

    async def _deliver(self, due: Due) -> None:
        try:
            self._next_s[due.job_id] = time.time() + LATER_S
            outcome = await self._sender.send(due.url, due.message_id, due.body, owner=due.owner)
            await run_in_threadpool(self._record, due, outcome)
        except Exception:
            log.exception("the webhook of job %s was tried, but that cannot be recorded", due.job_id)
        finally:
            del self._sending[due.job_id]

    def _record(self, due: Due, outcome: Outcome) -> None:
        now = time.time()
        next_s = None if outcome.final else self._next_attempt_s(due.attempt, now)
        delivery = Delivery(
            message=due.message_id,
            attempt=due.attempt,
            at=_time(now),
            status=outcome.status,
            error=outcome.error,
            next_at=None if next_s is None else _time(next_s),
        )
        self._count("failed" if outcome.error else "delivered")
        log.info("job %s: webhook, attempt %d: %s", due.job_id, due.attempt, outcome.error or "delivered")
        self._files.record(due.job_id, (*due.deliveries, delivery)[-MOST_KEPT:])
        # A message that is through is forgotten at the next look, unless the job has been resumed by then.
        self._next_s[due.job_id] = next_s or 0.0

    def _next_attempt_s(self, number: int, now: float) -> float | None:
        if number > len(self._pauses_s):
            return None
        return now + self._pauses_s[number - 1] * random.uniform(1, 1 + JITTER)  # noqa: S311 - no secret

    def _forget(self, job_id: str) -> None:
        self._files.unmark(job_id)
        self._next_s.pop(job_id, None)


def message_id(view: JobView) -> str:
    """Return the id of a message, the same at each attempt; a resumed job ends again, under another."""
    return f"msg_{view.record.id}_{view.record.version}"


def message(view: JobView) -> bytes:
    """Return the body: what ended and how; the receiver asks for the rest."""
    record = view.record
    assert record.webhook is not None
    links = job_links(record.id, record.webhook.root_path)
    document = {
        "type": "job.ended",
        "timestamp": record.finished_at,
        "data": {"id": record.id, "state": record.state, "links": links.model_dump(mode="json")},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _time(seconds: float) -> str:
    return rfc3339(int(seconds * 1_000_000))


def _seconds(time_text: str) -> float:
    return microseconds(time_text) / 1_000_000
