"""state/jobs/store.py, claims: one worker at a time, and never one whose lease another has taken."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from schemas.job import NO_PROGRESS, Progress
from state.data_dir import DataDir
from state.errors import FilesLocked, RedisUnavailable
from state.jobs.records import new_token
from state.jobs.store import JobStore
from tests.stopped import stopped_holder


class Blinking(redis.Redis):
    """A client that loses the server when one of its calls has been carried out."""

    calls = 0

    @classmethod
    def after(cls, calls, server):
        client = cls.from_url(server.unix_url, decode_responses=True)
        client.calls = calls
        return client

    def execute_command(self, *args, **options):
        answer = super().execute_command(*args, **options)
        self.calls -= 1
        if self.calls == 0:
            self.close()
            raise redis.ConnectionError
        return answer


PROGRESS = Progress(layers_done=2, layers_total=4, layer="encoder.0", fraction=0.5)


@pytest.mark.parametrize("round_", range(3))
def test_one_of_many_simultaneous_claims_wins(make_store, new, round_):
    stores = [make_store() for _ in range(4)]
    job_id = stores[0].create(new).id
    with ThreadPoolExecutor(32) as pool:
        claims = list(pool.map(lambda n: stores[n % 4].claim(job_id, new_token(f"worker-{n}")), range(64)))
    won = [claim for claim in claims if claim is not None]
    assert [claim.fence for claim in won] == [1]
    assert stores[0].get(job_id) == won[0].record
    assert won[0].record.attempt == 1


def test_a_claim_returns_all_that_the_worker_needs(jobs, new):
    created = jobs.create(new)
    claim = jobs.claim(created.id, new_token("worker"))
    assert claim is not None
    assert (claim.record.id, claim.record.spec, claim.record.checkpoint) == (created.id, new.spec, "my-model")
    assert claim.record.claim_token is not None
    assert claim.record.claim_token.startswith("worker#")


def test_a_claim_is_repeated_by_its_token_as_often_as_its_answer_is_lost(jobs, new):
    job_id, token = jobs.create(new).id, new_token("worker")
    assert jobs.claim(job_id, token) == jobs.claim(job_id, token)
    assert jobs.get(job_id).attempt == 1
    assert jobs.claim(job_id, new_token("worker")) is None


def test_a_repeated_claim_renews_its_lease(make_store, new):
    hasty, patient = make_store(lease_s=0), make_store()
    job_id, token = hasty.create(new).id, new_token("worker")
    assert hasty.claim(job_id, token) is not None
    claim = patient.claim(job_id, token)
    assert claim is not None
    assert claim.fence == 1
    assert hasty.upkeep.sweep() == ()


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_claim_that_redis_did_not_answer_succeeds_when_it_is_repeated(
    jobs, new, redis_server, tmp_path, calls
):
    job_id, token = jobs.create(new).id, new_token("worker")
    with pytest.raises(RedisUnavailable):
        JobStore(Blinking.after(calls, redis_server), tmp_path).claim(job_id, token)
    claim = jobs.claim(job_id, token)
    assert claim is not None
    assert (claim.fence, claim.record.attempt) == (1, 1)


def test_an_expired_lease_goes_to_the_next_that_claims_and_its_holder_can_publish_nothing(
    make_store, new, summary, why
):
    jobs = make_store(lease_s=0)
    job_id = jobs.create(new).id
    assert jobs.claim(job_id, new_token("first")) is not None
    second = jobs.claim(job_id, new_token("second"))
    assert second is not None
    assert (second.fence, second.record.attempt) == (2, 2)
    assert not jobs.renew_lease(job_id, 1, PROGRESS)
    assert not jobs.finish(job_id, 1, summary)
    assert not jobs.fail(job_id, 1, why)
    assert not jobs.retry(job_id, 1, why)
    assert jobs.view(job_id).progress == NO_PROGRESS
    assert jobs.finish(job_id, 2, summary)
    assert not jobs.finish(job_id, 1, summary)
    assert jobs.get(job_id).result_fence == 2


def test_a_heartbeat_renews_an_expired_lease_that_was_not_claimed(make_store, new):
    hasty, patient = make_store(lease_s=0), make_store()
    job_id = hasty.create(new).id
    assert hasty.claim(job_id, new_token("worker")) is not None
    assert patient.renew_lease(job_id, 1)
    assert hasty.claim(job_id, new_token("another")) is None
    assert hasty.upkeep.sweep() == ()
    assert hasty.get(job_id).attempt == 1


def test_a_heartbeat_carries_progress_which_stays_for_the_next_attempt(jobs, reach, why):
    job_id = reach("running")
    assert jobs.renew_lease(job_id, 1, PROGRESS)
    assert jobs.renew_lease(job_id, 1)
    assert jobs.view(job_id).progress == PROGRESS
    assert jobs.retry(job_id, 1, why)
    assert jobs.view(job_id).progress == PROGRESS


def test_a_finished_job_has_done_all_its_layers_whatever_the_last_heartbeat_said(jobs, reach, summary):
    job_id = reach("running")
    assert jobs.renew_lease(job_id, 1, PROGRESS)
    assert jobs.finish(job_id, 1, summary)
    progress = jobs.view(job_id).progress
    assert (progress.layers_done, progress.layers_total, progress.fraction) == (4, 4, 1.0)


def test_a_cancel_reaches_the_worker_with_its_next_heartbeat(jobs, reach, summary):
    job_id = reach("running")
    assert jobs.cancel(job_id).state == "canceled"
    assert not jobs.renew_lease(job_id, 1)
    assert not jobs.finish(job_id, 1, summary)
    assert jobs.get(job_id).state == "canceled"


@pytest.mark.parametrize("attempts", [1, 3])
def test_workers_that_vanish_use_up_the_attempts_and_then_the_job_fails(make_store, new, attempts):
    jobs = make_store(lease_s=0, max_attempts=attempts)
    job_id = jobs.create(new).id
    for fence in range(1, attempts + 1):
        claim = jobs.claim(job_id, new_token("worker"))
        assert claim is not None
        assert claim.fence == fence
    assert jobs.claim(job_id, new_token("worker")) is None
    record = jobs.get(job_id)
    assert (record.state, record.attempt) == ("failed", attempts)
    assert record.error is not None
    assert record.error.type == "urn:eckart:problem:worker-lost"


def test_one_call_ends_the_job_when_cancel_and_finish_race(make_store, new, summary):
    jobs, others = make_store(), make_store()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            job_id = jobs.create(new).id
            assert jobs.claim(job_id, new_token("worker")) is not None
            finished = pool.submit(jobs.finish, job_id, 1, summary)
            canceled = pool.submit(others.cancel, job_id)
            state = "succeeded" if finished.result() else "canceled"
            assert canceled.result().state == state
            assert jobs.get(job_id).state == state


def test_a_job_whose_files_a_stopped_process_locks_is_not_worked_on_and_its_attempt_does_not_count(
    make_store, new, tmp_path, monkeypatch
):
    monkeypatch.setattr("state.files.LOCK_WAIT_S", 0.1)
    jobs = make_store()
    job_id = jobs.create(new).id
    with stopped_holder(DataDir(tmp_path).lock("job", job_id)):
        with pytest.raises(FilesLocked):
            jobs.claim(job_id, new_token("worker"))
        record = jobs.get(job_id)
        assert (record.state, record.attempt) == ("queued", 0)
        assert jobs.upkeep.sweep() == (job_id,)
    assert jobs.claim(job_id, new_token("worker")) is not None
