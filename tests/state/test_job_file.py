"""job.json follows the record, forwards only."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from state.records import Idempotency, fixed_document, new_job_id, new_token
from state.scripts import Scripts

STATES = ("queued", "running", "succeeded", "failed", "canceled")


@pytest.fixture
def block(tmp_path):
    """Return what makes a job's shadow impossible to write, as a full disk does, and what mends it."""

    def stop(job_id) -> object:
        obstacle = tmp_path / "jobs" / job_id / "job.json.part"
        obstacle.mkdir()
        return obstacle.rmdir

    return stop


@pytest.mark.parametrize("state", STATES)
def test_the_shadow_equals_the_record_when_a_call_returns(jobs, reach, on_disk, redis_server, state):
    job_id = reach(state)
    assert on_disk(job_id) == jobs.get(job_id)
    assert redis_server.client().smembers("eckart:dirty") == set()


def test_an_older_release_can_read_a_shadow_that_a_newer_one_wrote(jobs, reach, redis_server, tmp_path):
    job_id = reach("succeeded")
    before = jobs.get(job_id)
    path = tmp_path / "jobs" / job_id / "job.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"from_the_future": 1}))
    redis_server.wipe()
    assert jobs.get(job_id) == before


@pytest.mark.parametrize("round_", range(5))
def test_the_last_state_is_on_disk_however_cancel_and_claim_interleave(make_store, new, on_disk, round_):
    stores = [make_store() for _ in range(4)]
    job_ids = [stores[0].create(new).id for _ in range(8)]
    with ThreadPoolExecutor(16) as pool:
        for job_id in job_ids:
            for n, store in enumerate(stores):
                pool.submit(store.claim, job_id, new_token(f"worker-{n}"))
                pool.submit(store.cancel, job_id)
    for job_id in job_ids:
        assert on_disk(job_id) == stores[0].get(job_id)
        assert on_disk(job_id).state == "canceled"


def test_no_shadow_is_left_when_a_delete_races_with_other_transitions(make_store, new, tmp_path):
    jobs, others = make_store(), make_store()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            job_id = jobs.create(new).id
            racing = [
                pool.submit(others.claim, job_id, new_token("worker")),
                pool.submit(others.heartbeat, job_id, 1),
            ]
            jobs.delete(job_id)
            for future in racing:
                future.result()
    assert not any((tmp_path / "jobs").iterdir())


def test_a_transition_stands_though_its_shadow_cannot_be_written_and_the_sweep_catches_up(
    jobs, reach, summary, block, on_disk, caplog
):
    job_id = reach("running")
    mend = block(job_id)
    assert jobs.finish(job_id, 1, summary)
    assert jobs.get(job_id).state == "succeeded"
    assert on_disk(job_id).state == "running"
    assert job_id in caplog.text
    mend()
    jobs.sweep()
    assert on_disk(job_id) == jobs.get(job_id)


def test_a_job_whose_files_cannot_be_removed_is_kept_whole(jobs, reach, tmp_path):
    job_id = reach("succeeded")
    (tmp_path / "trash").write_text("not a directory")
    with pytest.raises(OSError, match="trash"):
        jobs.delete(job_id)
    assert jobs.get(job_id).state == "succeeded"
    (tmp_path / "trash").unlink()
    jobs.delete(job_id)
    assert jobs.list().jobs == ()


def test_a_replay_is_on_disk_even_if_whoever_made_the_job_died_before_writing(
    jobs, new, redis_server, on_disk
):
    key = Idempotency(key="k", fingerprint="f")
    jobs.rebuild()
    job_id = new_job_id()
    fixed = fixed_document(new, job_id, key)
    scripts = Scripts(redis_server.client())
    assert scripts.run("create", job_id, new.checkpoint, "", key.digest, key.fingerprint, fixed) == "created"
    record = jobs.create(new, idempotency=key)
    assert record.id == job_id
    assert on_disk(job_id) == record


def test_no_fence_is_given_out_that_is_not_on_disk(jobs, reach, block, on_disk):
    job_id = reach("queued")
    block(job_id)
    with pytest.raises(OSError, match=r"job\.json"):
        jobs.claim(job_id, new_token("worker"))
    assert on_disk(job_id).fence == 0


def test_a_job_that_cannot_be_claimed_for_want_of_space_waits_until_there_is_some(
    jobs, reach, block, on_disk
):
    job_id, token = reach("queued"), new_token("worker")
    mend = block(job_id)
    for _ in range(4):
        with pytest.raises(OSError, match=r"job\.json"):
            jobs.claim(job_id, token)
        record = jobs.get(job_id)
        assert (record.state, record.attempt, record.worker) == ("queued", 0, None)
        assert jobs.sweep() == (job_id,)
    mend()
    claim = jobs.claim(job_id, token)
    assert claim is not None
    assert claim.record == on_disk(job_id) == jobs.get(job_id)
    assert claim.record.attempt == 1


def test_a_job_fails_at_its_claim_though_its_shadow_cannot_be_written(make_store, new, block):
    jobs = make_store(lease_s=0, max_attempts=1)
    job_id = jobs.create(new).id
    assert jobs.claim(job_id, new_token("worker")) is not None
    block(job_id)
    assert jobs.claim(job_id, new_token("worker")) is None
    assert jobs.get(job_id).state == "failed"


def test_a_job_that_cannot_be_made_durable_is_not_accepted(jobs, new, tmp_path, in_use):
    (tmp_path / "jobs").write_text("not a directory")
    with pytest.raises(OSError, match="jobs"):
        jobs.create(new)
    assert jobs.list().jobs == ()
    assert not in_use()
