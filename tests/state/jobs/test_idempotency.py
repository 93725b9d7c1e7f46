"""state/jobs/store.py, idempotency: one Idempotency-Key creates one job, however often it is sent."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from state.errors import IdempotencyMismatch
from state.jobs.records import Idempotency

KEY = Idempotency(key="a key\r\nof: any sort", fingerprint="f")


def test_the_same_request_again_is_answered_with_the_first_job(jobs, new):
    first = jobs.create(new, idempotency=KEY)
    assert jobs.create(new, idempotency=KEY) == first
    assert len(jobs.list().jobs) == 1


def test_a_replay_returns_the_first_job_as_it_is_now(jobs, new):
    first = jobs.create(new, idempotency=KEY)
    jobs.cancel(first.id)
    assert jobs.create(new, idempotency=KEY).state == "canceled"


def test_another_request_under_the_same_key_is_refused(jobs, new):
    jobs.create(new, idempotency=KEY)
    with pytest.raises(IdempotencyMismatch, match="use a new key"):
        jobs.create(new, idempotency=Idempotency(key=KEY.key, fingerprint="g"))
    assert len(jobs.list().jobs) == 1


def test_other_keys_and_no_keys_create_other_jobs(jobs, new):
    keys = (KEY, Idempotency(key="b", fingerprint="f"), None, None)
    assert len({jobs.create(new, idempotency=key).id for key in keys}) == 4


def test_a_key_is_free_again_once_its_job_is_deleted(jobs, new):
    first = jobs.create(new, idempotency=KEY)
    jobs.delete(first.id)
    assert jobs.create(new, idempotency=Idempotency(key=KEY.key, fingerprint="g")).id != first.id


def test_one_of_many_simultaneous_requests_creates_the_job(make_store, new):
    stores = [make_store() for _ in range(4)]
    with ThreadPoolExecutor(16) as pool:
        records = list(pool.map(lambda n: stores[n % 4].create(new, idempotency=KEY), range(32)))
    assert len({record.id for record in records}) == 1
    assert len(stores[0].list().jobs) == 1
