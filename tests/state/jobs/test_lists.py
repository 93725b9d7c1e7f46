"""state/jobs/store.py, lists: newest first, in pages that neither repeat nor skip a job."""

from dataclasses import replace

import pytest

from state.times import rfc3339

STATES = ("queued", "running", "succeeded", "failed", "canceled")


def walk(jobs, state, limit):
    page = jobs.list(state, limit=limit)
    while True:
        assert len(page.jobs) <= limit
        yield from (view.record.id for view in page.jobs)
        if page.next_cursor is None:
            return
        page = jobs.list(state, limit=limit, cursor=page.next_cursor)


def test_pages_together_are_the_whole_newest_first(jobs, new):
    ids = [jobs.create(new).id for _ in range(7)]
    for limit in (1, 2, 3, 7, 8):
        assert list(walk(jobs, None, limit)) == ids[::-1]


def test_a_list_by_state_holds_only_jobs_in_that_state(jobs, reach):
    ids = {state: [reach(state), reach(state)] for state in STATES}
    for state in STATES:
        assert list(walk(jobs, state, 1)) == ids[state][::-1]


def test_a_list_by_checkpoint_holds_only_jobs_on_it_and_of_the_owner(jobs, new, redis_server):
    other = new.model_copy(update={"checkpoint": "other"})
    mine, yours = jobs.of("mine"), jobs.of("yours")
    first, second = mine.create(new).id, mine.create(new).id
    mine.create(other)
    foreign = yours.create(new).id
    mine.cancel(second)

    def listed(own, *state):
        return [view.record.id for view in own.list(*state, checkpoint=new.checkpoint).jobs]

    for _ in range(2):
        assert listed(mine) == [second, first]
        assert listed(mine, "queued") == [first]
        assert listed(yours) == [foreign]
        redis_server.wipe()
    mine.delete(first)
    assert listed(mine) == [second]


def test_jobs_created_and_deleted_between_pages_shift_nothing(jobs, new):
    ids = [jobs.create(new).id for _ in range(6)]
    first = jobs.list(limit=2)
    jobs.create(new)
    jobs.delete(ids[5])
    jobs.delete(ids[3])
    rest = jobs.list(limit=10, cursor=first.next_cursor)
    assert [view.record.id for view in rest.jobs] == [ids[2], ids[1], ids[0]]


@pytest.mark.parametrize("state", STATES)
def test_a_listed_job_is_the_job_without_what_may_be_large(jobs, reach, state):
    view = jobs.view(reach(state))
    left_out = {"spec": {}, "files": (), "warnings": (), "idempotency": None}
    assert jobs.list().jobs == (replace(view, record=view.record.model_copy(update=left_out)),)


def test_jobs_are_counted_by_state_also_after_a_wipe(jobs, reach, redis_server):
    assert jobs.counts().oldest_queued_s is None
    for count, state in enumerate(STATES, 1):
        for _ in range(count):
            reach(state)
    counts = jobs.counts()
    assert counts.by_state == {state: count for count, state in enumerate(STATES, 1)}
    assert counts.oldest_queued_s is not None
    assert counts.oldest_queued_s > 0
    redis_server.wipe()
    assert jobs.counts().by_state == counts.by_state | {"queued": 3, "running": 0}


def test_an_empty_list_is_a_page(jobs):
    page = jobs.list("failed")
    assert (page.jobs, page.next_cursor) == ((), None)


def test_times_of_creation_differ_even_when_the_clock_is_set_back(jobs, new, redis_server):
    first = jobs.create(new)
    client = redis_server.client()
    ahead = 9_000_000_000_000_000
    client.zadd("eckart:jobs:all", {first.id: ahead})
    times = [jobs.create(new).created_at for _ in range(5)]
    assert len(set(times)) == 5
    assert times == sorted(times)
    assert times[0] > rfc3339(ahead)
