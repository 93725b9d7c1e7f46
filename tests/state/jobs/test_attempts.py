"""jobs/store.py, attempts: those that get further do not count, pauses between them, and a new beginning."""

import time

import pytest

from schemas.job import Progress
from state.errors import CheckpointGone, JobNotFailed, TooManyJobs
from state.jobs.records import NewJob, new_token


def progress(fraction):
    return Progress(layers_done=int(30 * fraction), layers_total=30, layer="l", fraction=fraction)


def attempt(jobs, job_id, fraction, end):
    """Begin an attempt, get to that share of the work, and end; return the record."""
    claim = jobs.claim(job_id, new_token("worker"))
    assert claim is not None
    assert jobs.renew_lease(job_id, claim.fence, progress(fraction))
    end(job_id, claim.fence)
    return jobs.get(job_id)


@pytest.fixture
def retry(jobs, why):
    return lambda job_id, fence: jobs.retry(job_id, fence, why)


def test_attempts_that_get_further_never_use_up_the_attempts(jobs, new, retry):
    job_id = jobs.create(new).id
    for number in range(1, 11):
        record = attempt(jobs, job_id, number / 20, retry)
        assert (record.state, record.attempt, record.attempts_without_progress) == ("queued", number, 0)
    states = [attempt(jobs, job_id, 0.5, retry).state for _ in range(3)]
    assert states == ["queued", "queued", "failed"]
    assert jobs.get(job_id).furthest == 0.5


@pytest.mark.parametrize("noticed_by", ["sweep", "claim"])
def test_workers_that_vanish_after_they_got_further_use_up_nothing(make_store, new, noticed_by):
    jobs = make_store(lease_s=0, max_attempts=1)
    job_id = jobs.create(new).id
    for number in range(1, 4):
        claim = jobs.claim(job_id, new_token("worker"))
        assert claim is not None
        assert jobs.renew_lease(job_id, claim.fence, progress(number / 10))
        if noticed_by == "sweep":
            assert jobs.upkeep.sweep() == (job_id,)
    assert jobs.get(job_id).state != "failed"


def test_a_release_never_counts(jobs, new):
    job_id = jobs.create(new).id
    for fraction in (0.0, 0.1, 0.1, 0.1, 0.2):
        record = attempt(jobs, job_id, fraction, jobs.release)
        assert (record.attempt, record.attempts_without_progress) == (0, 0)


def test_the_count_of_attempts_survives_a_wipe(jobs, new, retry, redis_server):
    job_id = jobs.create(new).id
    attempt(jobs, job_id, 0.5, retry)
    attempt(jobs, job_id, 0.5, retry)
    redis_server.wipe()
    assert attempt(jobs, job_id, 0.4, retry).state == "queued"
    assert attempt(jobs, job_id, 0.4, retry).state == "failed"


def test_a_pause_delays_the_message_and_not_for_ever(jobs, new, why):
    job_id = jobs.create(new).id
    attempt(jobs, job_id, 0.0, lambda job_id, fence: jobs.retry(job_id, fence, why, pause_s=0.3))
    assert jobs.upkeep.sweep() == ()
    paused = jobs.view(job_id)
    assert paused.queue_position is None
    assert paused.waiting is not None
    assert (paused.waiting.type, paused.waiting.title) == (why.type, why.title)
    assert paused.waiting.next_attempt_at > paused.record.started_at
    assert jobs.list("queued").jobs[0].waiting == paused.waiting
    time.sleep(0.3)
    assert jobs.upkeep.sweep() == (job_id,)
    assert jobs.view(job_id).queue_position == 0
    assert jobs.upkeep.sweep() == ()
    assert jobs.view(job_id).waiting is None


def test_a_pausing_job_is_not_taken_for_one_whose_message_is_lost(make_store, new, why):
    jobs = make_store(send_again_after_s=0)
    job_id = jobs.create(new).id
    attempt(jobs, job_id, 0.0, lambda job_id, fence: jobs.retry(job_id, fence, why, pause_s=60))
    assert jobs.upkeep.sweep() == ()
    assert jobs.cancel(job_id).state == "canceled"


def test_trouble_that_passes_uses_up_no_attempts_until_it_has_lasted_too_long(jobs, new, why):
    job_id = jobs.create(new).id

    def wait(job_id, fence):
        jobs.retry(job_id, fence, why, uncounted_for_s=limit_s)

    limit_s = 60
    records = [attempt(jobs, job_id, 0.0, wait) for _ in range(5)]
    assert {(record.state, record.attempts_without_progress) for record in records} == {("queued", 0)}
    limit_s = 0
    record = attempt(jobs, job_id, 0.0, wait)
    assert (record.state, record.error) == ("failed", why)


def test_trouble_after_progress_is_new_trouble(jobs, new, why, redis_server):
    job_id = jobs.create(new).id
    attempt(jobs, job_id, 0.1, lambda *job: jobs.retry(*job, why, uncounted_for_s=60))
    redis_server.client().hset(f"eckart:job:{job_id}", "waits_since_us", 1)
    record = attempt(jobs, job_id, 0.2, lambda *job: jobs.retry(*job, why, uncounted_for_s=60))
    assert record.state == "queued"


def test_a_resumed_job_has_all_its_attempts_again_and_no_error(make_store, new, why, in_use):
    jobs = make_store(max_attempts=1)
    job_id = jobs.create(new).id
    attempt(jobs, job_id, 0.0, lambda *job: jobs.retry(*job, why))
    assert not in_use()
    record = jobs.resume(job_id)
    assert (record.state, record.error, record.finished_at) == ("queued", None, None)
    assert in_use()
    claim = jobs.claim(job_id, new_token("worker"))
    assert claim is not None
    assert claim.fence == 2


@pytest.mark.parametrize("state", ["queued", "running", "succeeded", "canceled"])
def test_only_a_failed_job_can_be_resumed(jobs, reach, state):
    before = jobs.get(reach(state))
    with pytest.raises(JobNotFailed, match=state):
        jobs.resume(before.id)
    assert jobs.get(before.id) == before


def test_a_resumed_job_stays_so_after_a_wipe(jobs, reach, redis_server):
    job_id = reach("failed")
    jobs.resume(job_id)
    redis_server.wipe()
    assert jobs.get(job_id).state == "queued"


def test_a_job_cannot_be_resumed_without_its_checkpoint(jobs, new, why, store_file, checkpoints):
    file = store_file("my-model", "model.safetensors")
    job_id = jobs.create(NewJob(checkpoint="my-model", spec=new.spec, files=(file,))).id
    attempt(jobs, job_id, 0.0, lambda *job: jobs.fail(*job, why))
    with jobs.locked_for_deletion("my-model"):
        with pytest.raises(CheckpointGone):
            jobs.resume(job_id)
        checkpoints.delete("my-model")
    with pytest.raises(CheckpointGone):
        jobs.resume(job_id)
    assert jobs.get(job_id).state == "failed"


def test_the_longest_step_of_all_running_jobs_is_counted(jobs, reach):
    assert jobs.counts().longest_step_s == 0
    first, second = reach("running"), reach("running")
    assert jobs.renew_lease(first, 1, progress(0.1), idle_s=1000)
    assert jobs.renew_lease(second, 1, progress(0.1), idle_s=10)
    assert 1000 <= jobs.counts().longest_step_s < 2000
    jobs.cancel(first)
    assert 10 <= jobs.counts().longest_step_s < 1000


def test_resumed_jobs_never_are_more_than_may_wait(make_store, new, why):
    jobs = make_store(most_waiting=2)
    first, second = (jobs.create(new).id for _ in range(2))
    for job_id in (first, second):
        attempt(jobs, job_id, 0.0, lambda *job: jobs.fail(*job, why))
    other = jobs.create(new).id
    jobs.resume(first)
    with pytest.raises(TooManyJobs):
        jobs.resume(second)
    assert jobs.get(second).state == "failed"
    jobs.cancel(other)
    assert jobs.resume(second).state == "queued"
