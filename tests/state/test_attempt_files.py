"""What an ended job leaves on the disk: its record, and the result that the record names."""

import pytest

from state.data_dir import DataDir
from state.records import new_token


@pytest.fixture
def litter(tmp_path):
    """Return what leaves behind all that attempts leave, and what lists what is there of a job."""
    layout = DataDir(tmp_path)

    def put(job_id: str) -> None:
        places = [layout.work(job_id), layout.result(job_id, 1), layout.result(job_id, 2)]
        for place in [*places, layout.job(job_id) / "result-1.part", layout.job(job_id) / "result-3.part"]:
            (place / "deep").mkdir(parents=True)
            (place / "deep" / "file").write_bytes(b"some bytes")

    return put


@pytest.fixture
def left(tmp_path):
    """Return what names the things that are there of a job."""

    def look(job_id: str) -> list[str]:
        return sorted(path.name for path in (tmp_path / "jobs" / job_id).iterdir())

    return look


def test_a_job_canceled_while_it_waits_leaves_its_record_alone(jobs, reach, why, litter, left, tmp_path):
    job_id = reach("running")
    litter(job_id)
    assert jobs.retry(job_id, 1, why)
    assert "work" in left(job_id)
    jobs.cancel(job_id)
    assert left(job_id) == ["job.json"]
    assert not any((tmp_path / "trash").iterdir())


def test_a_job_canceled_while_it_runs_keeps_its_files_until_its_worker_must_have_noticed(
    make_store, new, litter, left
):
    jobs, later = make_store(lease_s=60), make_store(lease_s=0)
    job_id = jobs.create(new).id
    assert jobs.claim(job_id, new_token("worker")) is not None
    litter(job_id)
    before = left(job_id)
    jobs.cancel(job_id)
    jobs.cancel(job_id)
    assert not jobs.heartbeat(job_id, 1)
    assert jobs.sweep() == ()
    assert left(job_id) == before

    other = later.create(new).id
    assert later.claim(other, new_token("worker")) is not None
    litter(other)
    later.cancel(other)
    later.sweep()
    assert left(other) == ["job.json"]
    assert later.get(other).state == "canceled"


def test_a_worker_that_dies_after_a_cancel_leaves_nothing_for_ever(jobs, reach, litter, left, redis_server):
    job_id = reach("canceled")
    litter(job_id)
    jobs.sweep()
    assert "work" in left(job_id)
    # Its lease lapses.
    redis_server.client().zadd("eckart:leases", {job_id: 1})
    jobs.sweep()
    assert left(job_id) == ["job.json"]
    assert redis_server.client().zcard("eckart:leases") == 0
    assert redis_server.client().scard("eckart:dirty") == 0


@pytest.mark.parametrize("verb", ["fail", "retry"])
def test_an_attempt_that_fails_its_job_leaves_its_record_alone(make_store, new, why, litter, left, verb):
    jobs = make_store(max_attempts=1)
    job_id = jobs.create(new).id
    assert jobs.claim(job_id, new_token("worker")) is not None
    litter(job_id)
    assert getattr(jobs, verb)(job_id, 1, why)
    assert left(job_id) == ["job.json"]


@pytest.mark.parametrize("verb", ["sweep", "claim"])
def test_a_job_that_fails_for_want_of_workers_leaves_its_record_alone(make_store, new, litter, left, verb):
    jobs = make_store(lease_s=0, max_attempts=1)
    job_id = jobs.create(new).id
    assert jobs.claim(job_id, new_token("worker")) is not None
    litter(job_id)
    if verb == "sweep":
        jobs.sweep()
    else:
        assert jobs.claim(job_id, new_token("another")) is None
    assert jobs.get(job_id).state == "failed"
    assert left(job_id) == ["job.json"]


@pytest.mark.parametrize("again", [False, True])
def test_a_finished_job_leaves_the_result_that_its_record_names(
    jobs, reach, why, summary, litter, left, again
):
    job_id = reach("running")
    if again:
        assert jobs.retry(job_id, 1, why)
        assert jobs.claim(job_id, new_token("another")) is not None
    litter(job_id)
    fence = 2 if again else 1
    assert jobs.finish(job_id, fence, summary)
    assert left(job_id) == ["job.json", f"result-{fence}"]
    # Late words of an earlier attempt, and a cancel, change nothing.
    assert not jobs.fail(job_id, 3 - fence, why)
    jobs.cancel(job_id)
    assert left(job_id) == ["job.json", f"result-{fence}"]


@pytest.mark.parametrize("state", ["queued", "running"])
def test_an_unfinished_job_keeps_its_files(jobs, reach, why, litter, left, state):
    job_id = reach("running")
    litter(job_id)
    before = left(job_id)
    if state == "queued":
        assert jobs.retry(job_id, 1, why)
    jobs.sweep()
    assert left(job_id) == before


def test_files_that_cannot_be_removed_do_not_undo_the_end_of_a_job(
    jobs, reach, why, litter, left, tmp_path, caplog
):
    job_id = reach("running")
    litter(job_id)
    before = left(job_id)
    (tmp_path / "trash").write_text("not a directory")
    assert jobs.fail(job_id, 1, why)
    assert jobs.get(job_id).state == "failed"
    assert job_id in caplog.text
    assert left(job_id) == before
    (tmp_path / "trash").unlink()
    assert jobs.fail(job_id, 1, why)
    assert left(job_id) == ["job.json"]


def test_a_full_disk_does_not_keep_the_files_that_fill_it(jobs, reach, why, litter, left, tmp_path):
    job_id = reach("running")
    litter(job_id)
    (tmp_path / "jobs" / job_id / "job.json.part").mkdir()
    assert jobs.fail(job_id, 1, why)
    assert left(job_id) == ["job.json", "job.json.part"]
