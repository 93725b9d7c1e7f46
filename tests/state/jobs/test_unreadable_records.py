"""state/jobs/records.py and job_file.py: a record that cannot be read stops no other and is not lost."""

import json

import pytest

from state.errors import JobNotFound
from state.jobs.records import new_token

STATES = ("queued", "running", "succeeded", "failed", "canceled")
NEWER_SPEC = {"rank": {"by_magic": 3}, "method": "dream"}


@pytest.fixture
def job_json(tmp_path):
    """Return what gives the path of job.json."""
    return lambda job_id: tmp_path / "jobs" / job_id / "job.json"


@pytest.fixture
def harm(job_json):
    """Return what gives a record other contents, as a newer release has them."""

    def change(job_id: str, **fields: object) -> None:
        document = json.loads(job_json(job_id).read_text())
        job_json(job_id).write_text(json.dumps(document | fields))

    return change


@pytest.mark.parametrize("wiped", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_a_spec_of_a_newer_release_is_kept_through_every_transition(
    jobs, reach, harm, redis_server, on_disk, state, wiped
):
    job_id = reach(state)
    harm(job_id, spec=NEWER_SPEC, from_the_future={"deep": [1]})
    if wiped:
        redis_server.wipe()
    record = jobs.get(job_id)
    assert (record.readable, record.spec) == (True, NEWER_SPEC)
    assert [view.record.id for view in jobs.list().jobs] == [job_id]
    jobs.cancel(job_id)
    jobs.upkeep.write_deferred()
    assert jobs.get(job_id).spec == on_disk(job_id).spec == NEWER_SPEC
    redis_server.wipe()
    assert jobs.get(job_id).spec == NEWER_SPEC
    jobs.delete(job_id)
    with pytest.raises(JobNotFound):
        jobs.get(job_id)


@pytest.mark.parametrize("field", ["files", "warnings", "spec", "owns_checkpoint", "idempotency"])
@pytest.mark.parametrize("state", STATES)
def test_a_field_that_cannot_be_read_is_kept_and_the_rest_is_read(
    jobs, reach, harm, job_json, redis_server, state, field
):
    job_id = reach(state)
    harm(job_id, **{field: 7})
    for _ in range(2):
        record = jobs.get(job_id)
        assert not record.readable
        assert record.state == ("queued" if state == "running" and _ else state)
        assert record.result_fence == (1 if state == "succeeded" else None)
        redis_server.wipe()
    assert jobs.cancel(job_id).state == ("canceled" if state in {"queued", "running"} else state)
    assert json.loads(job_json(job_id).read_text())[field] == 7
    jobs.delete(job_id)
    assert not job_json(job_id).parent.exists()


def test_one_bad_record_stops_no_message_and_no_repair(jobs, reach, harm, redis_server, job_json, on_disk):
    bad, damaged, good = reach("queued"), reach("queued"), reach("queued")
    harm(bad, files=7)
    job_json(damaged).write_text("{")
    redis_server.wipe()
    assert jobs.upkeep.sweep() == (bad, good)
    client = redis_server.client()
    client.sadd("eckart:dirty", bad, damaged, good)
    client.hset(f"eckart:job:{damaged}", "version", "no number")
    jobs.upkeep.write_deferred()
    assert client.smembers("eckart:dirty") == {damaged}
    assert on_disk(good) == jobs.get(good)


def test_a_record_that_its_worker_cannot_read_goes_back_uncounted_again_and_again(jobs, reach, harm):
    job_id = reach("queued")
    harm(job_id, files=7)
    for fence in range(1, 6):
        claim = jobs.claim(job_id, new_token("older"))
        assert claim is not None
        assert (claim.fence, claim.record.attempt, claim.record.readable) == (fence, 1, False)
        assert jobs.release(job_id, fence)
        assert jobs.upkeep.sweep() == (job_id,)
    assert jobs.get(job_id).state == "queued"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "J"}', '{"state": "dreaming"}', "\x00" * 100])
def test_a_damaged_job_json_is_listed_kept_and_deleted(jobs, reach, redis_server, job_json, text):
    job_id = reach("queued")
    job_json(job_id).write_text(text)
    redis_server.wipe()
    record = jobs.get(job_id)
    assert (record.state, record.readable) == ("failed", False)
    assert [view.record.id for view in jobs.list("failed").jobs] == [job_id]
    assert jobs.claim(job_id, new_token("worker")) is None
    jobs.cancel(job_id)
    jobs.upkeep.write_deferred()
    assert job_json(job_id).read_text() == text
    jobs.delete(job_id)
    assert not job_json(job_id).parent.exists()
    assert jobs.list().jobs == ()


def test_a_damaged_job_with_a_result_keeps_it(jobs, reach, redis_server, job_json):
    job_id = reach("succeeded")
    result = job_json(job_id).parent / "result-1"
    result.mkdir()
    (result.parent / "result-2.part").mkdir()
    job_json(job_id).write_text("{")
    redis_server.wipe()
    record = jobs.get(job_id)
    assert (record.state, record.result_fence, record.readable) == ("succeeded", 1, False)
    jobs.upkeep.write_deferred()
    assert result.is_dir()


@pytest.mark.parametrize("state", STATES)
def test_a_job_json_that_is_repaired_is_found_by_the_next_turn(jobs, reach, redis_server, job_json, state):
    job_id = reach(state)
    text = job_json(job_id).read_text()
    job_json(job_id).write_text("{")
    redis_server.wipe()
    assert not jobs.get(job_id).readable
    job_json(job_id).write_text(text)
    jobs.upkeep.write_deferred()
    record = jobs.get(job_id)
    assert (record.state, record.readable) == ("queued" if state == "running" else state, True)
