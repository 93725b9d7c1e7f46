"""state/jobs/store.py, transitions: every call in every state, its answer and the state that follows."""

import pytest

from state.errors import JobNotFound
from state.jobs.records import new_token

STATES = ("queued", "running", "succeeded", "failed", "canceled")

# What a call under fence 1 answers, and the state it leads to; None: as before.
# A repeated call gets the same answer: the first answer may have been lost.
TABLE = {
    "claim": {"queued": (True, "running"), "running": (False, None)},
    "renew_lease": {"running": (True, None)},
    "finish": {"running": (True, "succeeded"), "succeeded": (True, None)},
    "fail": {"running": (True, "failed"), "failed": (True, None)},
    "retry": {"running": (True, "queued"), "failed": (True, None)},
    "release": {"running": (True, "queued")},
    "cancel": {
        "queued": (True, "canceled"),
        "running": (True, "canceled"),
        "succeeded": (True, None),
        "failed": (True, None),
        "canceled": (True, None),
    },
}


@pytest.fixture
def call(jobs, summary, why):
    return {
        "claim": lambda job_id, _: jobs.claim(job_id, new_token("another")) is not None,
        "renew_lease": jobs.renew_lease,
        "finish": lambda job_id, fence: jobs.finish(job_id, fence, summary),
        "fail": lambda job_id, fence: jobs.fail(job_id, fence, why),
        "retry": lambda job_id, fence: jobs.retry(job_id, fence, why),
        "release": jobs.release,
        "cancel": lambda job_id, _: jobs.cancel(job_id).id == job_id,
    }


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("verb", TABLE)
def test_each_transition_does_what_the_table_says(jobs, reach, call, verb, state):
    job_id = reach(state)
    answer, then = TABLE[verb].get(state, (False, None))
    before = jobs.get(job_id)
    assert call[verb](job_id, 1) is answer
    after = jobs.get(job_id)
    assert after.state == (then or state)
    if then is None:
        assert after == before
    else:
        assert after.version == before.version + 1


@pytest.mark.parametrize("state", STATES)
def test_a_wrong_fence_changes_nothing_in_any_state(jobs, reach, call, state):
    job_id = reach(state)
    before = jobs.get(job_id)
    for verb in ("renew_lease", "finish", "fail", "retry", "release"):
        for fence in (2, 99):
            assert call[verb](job_id, fence) is False
            assert jobs.get(job_id) == before


@pytest.mark.parametrize("state", STATES)
def test_the_times_of_a_job_follow_its_state(jobs, reach, state):
    record = jobs.get(reach(state))
    assert (record.started_at is None) == (state == "queued")
    assert (record.finished_at is None) == (state in {"queued", "running"})
    times = [t for t in (record.created_at, record.started_at, record.finished_at) if t]
    assert times == sorted(times)
    assert all(len(t) == len("2026-01-02T03:04:05.678901Z") and t.endswith("Z") for t in times)


@pytest.mark.parametrize("state", STATES)
def test_a_deleted_job_is_gone_from_every_state(jobs, reach, call, redis_server, tmp_path, state):
    keys_before = set(redis_server.client().keys())
    job_id = reach(state)
    jobs.delete(job_id)
    with pytest.raises(JobNotFound):
        jobs.get(job_id)
    with pytest.raises(JobNotFound):
        jobs.cancel(job_id)
    with pytest.raises(JobNotFound):
        jobs.delete(job_id)
    assert not any(
        call[verb](job_id, 1) for verb in ("claim", "renew_lease", "finish", "fail", "retry", "release")
    )
    assert jobs.list().jobs == ()
    assert not any((tmp_path / "jobs").iterdir())
    assert not any((tmp_path / "trash").iterdir())
    assert set(redis_server.client().keys()) - keys_before <= {
        "eckart:ready",
        "eckart:created",
        "eckart:newest_claimed",
    }


def test_a_result_is_named_by_the_fence_that_made_it(jobs, reach, summary):
    job_id = reach("running")
    assert jobs.finish(job_id, 1, summary, "model.safetensors")
    record = jobs.get(job_id)
    assert (record.result_fence, record.single_file, record.summary) == (1, "model.safetensors", summary)


def test_a_sharded_result_has_no_single_file(jobs, reach, summary):
    job_id = reach("running")
    assert jobs.finish(job_id, 1, summary)
    assert jobs.get(job_id).single_file is None


def test_a_failed_job_has_its_problem(jobs, reach, why):
    assert jobs.get(reach("failed")).error == why


def test_a_retried_job_is_claimed_under_the_next_fence(jobs, reach, why):
    job_id = reach("running")
    assert jobs.retry(job_id, 1, why)
    claim = jobs.claim(job_id, new_token("another"))
    assert claim is not None
    assert (claim.fence, claim.record.attempt, claim.record.error) == (2, 2, None)


def test_an_attempt_that_ends_because_its_worker_stops_does_not_count(make_store, new):
    jobs = make_store(max_attempts=1)
    job_id = jobs.create(new).id
    for fence in (1, 2, 3):
        claim = jobs.claim(job_id, new_token("worker"))
        assert claim is not None
        assert (claim.fence, claim.record.attempt) == (fence, 1)
        assert jobs.release(job_id, fence)
        assert jobs.release(job_id, fence)
        assert jobs.get(job_id).attempt == 0
    assert jobs.upkeep.sweep() == (job_id,)


def test_a_retry_after_the_last_attempt_fails_the_job_with_its_reason(make_store, new, why):
    jobs = make_store(max_attempts=2)
    job_id = jobs.create(new).id
    for fence in (1, 2):
        assert jobs.get(job_id).state == "queued"
        assert jobs.claim(job_id, new_token("worker")) is not None
        assert jobs.retry(job_id, fence, why)
    record = jobs.get(job_id)
    assert (record.state, record.attempt, record.error) == ("failed", 2, why)


@pytest.mark.parametrize(
    "job_id",
    [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "J" + "0" * 31,
        "J" + "0" * 32 + "\n",
        "J" + "G" * 32,
        "j" + "0" * 32,
        "J\0",
    ],
)
def test_an_impossible_id_is_not_found_and_never_becomes_a_path(jobs, call, tmp_path, job_id):
    outside = tmp_path.parent / "job.json"
    for verb in (jobs.get, jobs.view, jobs.cancel, jobs.delete):
        with pytest.raises(JobNotFound):
            verb(job_id)
    assert not any(
        call[verb](job_id, 1) for verb in ("claim", "renew_lease", "finish", "fail", "retry", "release")
    )
    assert not outside.exists()
    assert not any(tmp_path.iterdir())
