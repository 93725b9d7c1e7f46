"""state/jobs/upkeep.py, sweep: lost workers and lost messages are noticed, and no message is sent twice."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from state.jobs.records import new_token
from state.redis import QUEUE_KEY


@pytest.fixture
def messages(redis_server):
    """Return the broker's list, where the length counts and not what the messages say."""
    client = redis_server.client()

    class Messages:
        def put(self, count: int) -> None:
            client.rpush(QUEUE_KEY, *["message"] * count)

        def take(self, count: int) -> None:
            client.lpop(QUEUE_KEY, count)

    return Messages()


def test_a_job_whose_lease_has_expired_is_sent_again(make_store, new):
    jobs = make_store(lease_s=0)
    job_id = jobs.create(new).id
    assert jobs.claim(job_id, new_token("worker")) is not None
    assert jobs.upkeep.sweep() == (job_id,)
    record = jobs.get(job_id)
    assert (record.state, record.attempt, record.fence, record.claim_token) == ("queued", 1, 1, None)


def test_a_job_whose_lease_holds_is_left_alone(jobs, reach):
    reach("running")
    assert jobs.upkeep.sweep() == ()


def test_an_expired_lease_with_no_attempts_left_fails_the_job(make_store, new, in_use):
    jobs = make_store(lease_s=0, max_attempts=1)
    job_id = jobs.create(new).id
    assert jobs.claim(job_id, new_token("worker")) is not None
    assert jobs.upkeep.sweep() == ()
    record = jobs.get(job_id)
    assert record.state == "failed"
    assert record.error is not None
    assert record.error.type == "urn:eckart:problem:worker-lost"
    assert "1 attempts" in record.error.detail
    assert not in_use()


def test_a_retried_job_is_sent_again_at_once(jobs, reach, why):
    job_id = reach("running")
    assert jobs.retry(job_id, 1, why)
    assert jobs.upkeep.sweep() == (job_id,)
    assert jobs.upkeep.sweep() == ()


def test_a_fresh_job_is_not_sent_again(jobs, reach):
    reach("queued")
    assert jobs.upkeep.sweep() == ()


def test_lost_messages_are_sent_again_in_order_when_the_queue_is_empty(make_store, new):
    jobs = make_store(send_again_after_s=0)
    ids = tuple(jobs.create(new).id for _ in range(5))
    assert jobs.upkeep.sweep() == ids


def test_no_second_messages_are_sent_while_the_queue_is_long(make_store, new, messages):
    jobs = make_store(send_again_after_s=0)
    ids = [jobs.create(new).id for _ in range(5)]
    messages.put(5)
    for job_id in ids[:3]:
        messages.take(1)
        assert jobs.claim(job_id, new_token("worker")) is not None
        assert jobs.upkeep.sweep() == ()


def test_a_lost_message_is_found_behind_a_queue_that_never_empties(make_store, new, messages):
    jobs = make_store(send_again_after_s=0)
    lost, *others = [jobs.create(new).id for _ in range(4)]
    messages.put(3)
    assert jobs.upkeep.sweep() == ()
    assert jobs.claim(others[0], new_token("worker")) is not None
    assert jobs.upkeep.sweep() == (lost,)


def test_a_job_that_was_sent_again_does_not_make_the_others_look_lost(make_store, new, messages, why):
    jobs = make_store(send_again_after_s=0)
    first, *_ = [jobs.create(new).id for _ in range(4)]
    messages.put(4)
    assert jobs.claim(first, new_token("worker")) is not None
    assert jobs.retry(first, 1, why)
    assert jobs.upkeep.sweep() == (first,)
    assert jobs.claim(first, new_token("worker")) is not None
    assert jobs.upkeep.sweep() == ()


def test_a_job_sent_again_waits_for_its_message_like_any_other(make_store, new):
    jobs = make_store(send_again_after_s=0.5)
    job_id = jobs.create(new).id
    time.sleep(0.5)
    assert jobs.upkeep.sweep() == (job_id,)
    assert jobs.upkeep.sweep() == ()


def test_the_queue_position_counts_the_jobs_before(jobs, reach, why):
    running, second, third = reach("running"), reach("queued"), reach("queued")
    assert [jobs.view(job_id).queue_position for job_id in (running, second, third)] == [None, 0, 1]
    assert jobs.retry(running, 1, why)
    assert [jobs.view(job_id).queue_position for job_id in (running, second, third)] == [2, 0, 1]
    jobs.cancel(second)
    assert [jobs.view(job_id).queue_position for job_id in (running, second, third)] == [1, None, 0]


def test_a_message_is_sent_again_by_one_of_several_sweeps(make_store, new):
    jobs = make_store(send_again_after_s=15)
    job_ids = [jobs.create(new).id for _ in range(20)]
    for job_id in job_ids:
        assert jobs.claim(job_id, new_token("worker")) is not None
        assert jobs.release(job_id, 1)
    stores = [make_store() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda store: store.upkeep.sweep(), stores)
        due = [job_id for several in found for job_id in several]
    assert sorted(due) == sorted(job_ids)


AN_HOUR_US = 3_600_000_000


def test_a_clock_that_was_an_hour_ahead_keeps_no_message_lost(make_store, new, redis_server):
    jobs, client = make_store(), redis_server.client()
    ahead = jobs.create(new).id
    for key in ("jobs:all", "jobs:queued", "waiting"):
        client.zincrby(f"eckart:{key}", AN_HOUR_US, ahead)
    client.hincrby(f"eckart:job:{ahead}", "created_us", AN_HOUR_US)
    # Its own message counts as lost at once; one that is created now, after the usual time.
    assert jobs.upkeep.sweep() == (ahead,)
    assert jobs.upkeep.sweep() == ()
    later = jobs.create(new).id
    assert client.zscore("eckart:waiting", later) < client.zscore("eckart:jobs:all", later) - AN_HOUR_US / 2
    assert jobs.upkeep.sweep() == ()
    assert make_store(send_again_after_s=0).upkeep.sweep() == (ahead, later)


def test_a_job_claimed_while_the_clock_was_ahead_makes_no_other_look_lost(
    make_store, new, redis_server, messages
):
    jobs, client = make_store(send_again_after_s=0), redis_server.client()
    ahead = jobs.create(new).id
    client.hincrby(f"eckart:job:{ahead}", "created_us", AN_HOUR_US)
    assert jobs.claim(ahead, new_token("worker")) is not None
    jobs.create(new)
    messages.put(1)
    assert jobs.upkeep.sweep() == ()


def test_a_lease_given_while_the_clock_was_ahead_ends_as_if_given_now(make_store, new, redis_server):
    jobs, client = make_store(lease_s=0.2), redis_server.client()
    job_id = jobs.create(new).id
    assert jobs.claim(job_id, new_token("worker")) is not None
    client.zincrby("eckart:leases", AN_HOUR_US, job_id)
    assert jobs.upkeep.sweep() == ()
    time.sleep(0.2)
    assert jobs.upkeep.sweep() == (job_id,)


def test_canceled_and_deleted_jobs_are_not_sent_again(make_store, new):
    jobs = make_store(send_again_after_s=0)
    canceled, deleted = jobs.create(new).id, jobs.create(new).id
    jobs.cancel(canceled)
    jobs.delete(deleted)
    assert jobs.upkeep.sweep() == ()
