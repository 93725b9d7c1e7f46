"""state/jobs/store.py, random walks: the promises hold for any order of calls, wipes and restarts."""

import random
from collections import defaultdict

import pytest

from state.jobs.records import Idempotency, new_token

STEPS = 120
ENDED = {"succeeded", "failed", "canceled"}


class Walk:
    """Jobs, workers that may have lost them, and a server that is sometimes wiped or restarted."""

    def __init__(self, seed, stores, new, summary, why, server, in_use) -> None:
        self.random = random.Random(seed)
        self.stores, self.new, self.summary, self.why, self.server = stores, new, summary, why, server
        self.in_use = in_use
        self.held: list[tuple[str, int]] = []
        self.fences: dict[str, list[int]] = defaultdict(list)
        self.ended: dict[str, object] = {}
        self.ids: list[str] = []

    def step(self) -> None:
        verbs = (
            ["create"]
            + ["claim"] * 3
            + ["end"] * 3
            + ["renew_lease", "cancel", "sweep", "sweep", "wipe", "restart"]
        )
        getattr(self, self.random.choice(verbs))(self.random.choice(self.stores))
        self.check()

    def create(self, jobs) -> None:
        key = Idempotency(key=str(self.random.randrange(20)), fingerprint="f")
        job_id = jobs.create(self.new, idempotency=key).id
        if job_id not in self.ids:
            self.ids.append(job_id)

    def claim(self, jobs) -> None:
        if self.ids and (claim := jobs.claim(self.random.choice(self.ids), new_token("worker"))):
            self.fences[claim.record.id].append(claim.fence)
            self.held.append((claim.record.id, claim.fence))

    def end(self, jobs) -> None:
        if not self.held:
            return
        job_id, fence = self.random.choice(self.held)
        verb = self.random.choice(["finish", "fail", "retry"])
        given = {"finish": self.summary, "fail": self.why, "retry": self.why}[verb]
        if getattr(jobs, verb)(job_id, fence, given):
            assert fence == self.fences[job_id][-1]

    def renew_lease(self, jobs) -> None:
        if self.held:
            job_id, fence = self.random.choice(self.held)
            if jobs.renew_lease(job_id, fence):
                assert fence == self.fences[job_id][-1]

    def cancel(self, jobs) -> None:
        if self.ids:
            assert jobs.cancel(self.random.choice(self.ids)).state in ENDED

    def sweep(self, jobs) -> None:
        jobs.upkeep.sweep()
        jobs.upkeep.write_deferred()

    def wipe(self, _) -> None:
        self.server.wipe()

    def restart(self, _) -> None:
        self.server.restart()

    def check(self) -> None:
        jobs = self.stores[0]
        views = jobs.list(limit=1000).jobs
        assert [view.record.id for view in views] == self.ids[::-1]
        for view in views:
            record = view.record
            assert (view.queue_position is not None) == (record.state == "queued")
            if record.state in ENDED:
                assert self.ended.setdefault(record.id, record) == record
            else:
                assert record.id not in self.ended
        for fences in self.fences.values():
            assert fences == sorted(set(fences))
        waiting = sorted(v.queue_position for v in views if v.queue_position is not None)
        assert waiting == list(range(len(waiting)))
        assert self.in_use() == any(v.record.state not in ENDED for v in views)


@pytest.mark.parametrize("seed", range(3))
def test_no_order_of_events_breaks_a_promise(make_store, new, summary, why, redis_server, in_use, seed):
    stores = [make_store(), make_store(lease_s=0), make_store(max_attempts=2, send_again_after_s=0)]
    walk = Walk(seed, stores, new, summary, why, redis_server, in_use)
    for _ in range(STEPS):
        walk.step()
    assert walk.ended
    assert any(len(fences) > 1 for fences in walk.fences.values())
