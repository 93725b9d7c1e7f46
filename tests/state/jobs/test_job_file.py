"""state/jobs/job_file.py: job.json follows the record, and ended jobs keep no files of their attempts."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from schemas.checkpoint import FileInfo
from schemas.job import Progress
from schemas.problem import FieldProblem, ProblemKind
from state.checkpoints.manifest import MANIFEST
from state.data_dir import DataDir
from state.errors import JobNotFound
from state.jobs.job_file import JobFiles
from state.jobs.records import Idempotency, NewJob, new_job_id, new_token
from state.jobs.scripts import Scripts

KEY = Idempotency(key="k", fingerprint="f")
STATES = ("queued", "running", "succeeded", "failed", "canceled")


@pytest.fixture
def block(tmp_path):
    """Return what makes job.json impossible to write, as a full disk does; it returns the repair."""

    def stop(job_id) -> object:
        obstacle = tmp_path / "jobs" / job_id / "job.json.part"
        obstacle.mkdir()
        return obstacle.rmdir

    return stop


@pytest.mark.parametrize("state", STATES)
def test_job_json_equals_the_record_when_a_call_returns(jobs, reach, on_disk, redis_server, state):
    job_id = reach(state)
    assert on_disk(job_id) == jobs.get(job_id)
    assert redis_server.client().smembers("eckart:dirty") == set()


def test_an_older_release_can_read_a_job_json_of_a_newer_one(jobs, reach, redis_server, tmp_path):
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


def test_no_job_json_is_left_when_a_delete_races_with_other_transitions(make_store, new, tmp_path):
    jobs, others = make_store(), make_store()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            job_id = jobs.create(new).id
            racing = [
                pool.submit(others.claim, job_id, new_token("worker")),
                pool.submit(others.renew_lease, job_id, 1),
            ]
            jobs.delete(job_id)
            for future in racing:
                future.result()
    assert not any((tmp_path / "jobs").iterdir())


def test_a_transition_holds_even_if_job_json_cannot_be_written_until_the_sweep(
    jobs, reach, summary, block, on_disk, caplog
):
    job_id = reach("running")
    repair = block(job_id)
    assert jobs.finish(job_id, 1, summary)
    assert jobs.get(job_id).state == "succeeded"
    assert on_disk(job_id).state == "running"
    assert job_id in caplog.text
    repair()
    jobs.upkeep.sweep()
    jobs.upkeep.write_deferred()
    assert on_disk(job_id) == jobs.get(job_id)


def test_a_job_that_is_in_use_is_written_by_a_later_sweep_and_not_reported(
    jobs, reach, on_disk, redis_server, tmp_path, caplog
):
    job_id = reach("queued")
    files = JobFiles(DataDir(tmp_path), Scripts(redis_server.client()))
    with files.lock(job_id):
        files._scripts.run("cancel", job_id)
        jobs.upkeep.write_deferred()
    assert on_disk(job_id).state == "queued"
    jobs.upkeep.write_deferred()
    assert on_disk(job_id).state == "canceled"
    assert caplog.text == ""


def test_a_job_whose_files_cannot_be_removed_is_kept_whole(jobs, reach, tmp_path):
    job_id = reach("succeeded")
    (tmp_path / "trash").write_text("not a directory")
    with pytest.raises(OSError, match="trash"):
        jobs.delete(job_id)
    assert jobs.get(job_id).state == "succeeded"
    (tmp_path / "trash").unlink()
    jobs.delete(job_id)
    assert jobs.list().jobs == ()


@pytest.fixture
def half_created(jobs, new, redis_server) -> str:
    """Return the id of a job whose creation died before job.json was written; its key is KEY."""
    jobs.counts()
    job_id = new_job_id()
    scripts = Scripts(redis_server.client())
    create = ("create", job_id, new.checkpoint, KEY.digest, KEY.fingerprint, "", 9)
    assert scripts.run(*create) == "created"
    return job_id


def test_a_job_without_job_json_is_shown_to_nobody_and_removed_by_the_sweep(
    jobs, half_created, redis_server, in_use
):
    with pytest.raises(JobNotFound):
        jobs.get(half_created)
    assert in_use()
    jobs.upkeep.sweep()
    jobs.upkeep.write_deferred()
    assert jobs.list().jobs == ()
    assert not in_use()
    assert redis_server.client().smembers("eckart:dirty") == set()
    assert not redis_server.client().keys("eckart:idempotency:*")


def test_a_job_without_job_json_is_never_worked_on(jobs, half_created):
    assert jobs.claim(half_created, new_token("worker")) is None
    assert jobs.list().jobs == ()


def test_a_key_whose_first_job_was_not_created_to_the_end_creates_another(jobs, new, half_created, on_disk):
    record = jobs.create(new, idempotency=KEY)
    assert record.id != half_created
    assert on_disk(record.id) == record
    assert [view.record.id for view in jobs.list().jobs] == [record.id]


@pytest.mark.parametrize("state", STATES)
def test_a_job_json_that_is_deleted_by_hand_makes_a_record_unreadable_until_it_is_back(
    jobs, reach, tmp_path, state
):
    job_id = reach(state)
    before, path = jobs.get(job_id), tmp_path / "jobs" / job_id / "job.json"
    text = path.read_text()
    path.unlink()
    jobs.upkeep.write_deferred()
    record = jobs.get(job_id)
    assert (record.id, record.state, record.readable) == (job_id, state, False)
    path.write_text(text)
    assert jobs.get(job_id) == before
    path.unlink()
    jobs.delete(job_id)
    assert jobs.list().jobs == ()


@pytest.mark.parametrize("state", ["running", "waiting", "succeeded", "failed"])
def test_redis_holds_4_kib_of_the_largest_job(make_store, summary, redis_server, tmp_path, state):
    jobs, client = make_store(), redis_server.client()
    jobs.counts()
    files = tuple(
        FileInfo(name=f"{at:0200}.safetensors", size_bytes=2**50, sha256="0" * 64) for at in range(1000)
    )
    spec = {"rank": 1, "exclude": ["*" * 1000] * 1000, "base": "m" * 64, "calibration": "m" * 64}
    new = NewJob(
        checkpoint="m" * 64,
        spec=spec,
        files=files,
        base_files=files,
        calibration_files=files,
        warnings=("w" * 1000,) * 100,
    )
    long = Progress(layers_done=1, layers_total=9, layer="ü" * 100_000, fraction=0.1)
    errors = tuple(FieldProblem(pointer="/exclude", detail="ü" * 10_000) for _ in range(100))
    why = ProblemKind.INVALID_SPEC.problem("ü" * 100_000, errors=errors)
    other = jobs.of("o" * 64)
    other.create(NewJob(checkpoint="m" * 64, spec={}))
    manifest = DataDir(tmp_path, "o" * 64).manifest("m" * 64)
    manifest.parent.mkdir(parents=True)
    manifest.write_bytes(MANIFEST.dump_json({file.name: file for file in files}))
    for file in files:
        (manifest.parent / file.name).touch()
    before = sum(client.memory_usage(key, samples=0) for key in client.keys("eckart:*"))
    job_id = other.create(new, idempotency=Idempotency(key="k" * 255, fingerprint="f" * 64)).id
    assert jobs.claim(job_id, new_token("h" * 64)) is not None
    assert jobs.renew_lease(job_id, 1, long)
    if state == "succeeded":
        assert jobs.finish(job_id, 1, summary, "z" * 255)
    elif state == "waiting":
        assert jobs.retry(job_id, 1, why, pause_s=60, uncounted_for_s=600)
    elif state == "failed":
        assert jobs.fail(job_id, 1, why)
    for _ in ("as it came", "restored"):
        after = sum(client.memory_usage(key, samples=0) for key in client.keys("eckart:*"))
        assert after - before <= 4096
        redis_server.wipe()
        assert jobs.get(job_id).files == files
    assert (tmp_path / "jobs" / job_id / "job.json").stat().st_size > 1_000_000


def test_no_fence_is_issued_that_is_not_on_disk(jobs, reach, block, on_disk):
    job_id = reach("queued")
    block(job_id)
    with pytest.raises(OSError, match=r"job\.json"):
        jobs.claim(job_id, new_token("worker"))
    assert on_disk(job_id).fence == 0


def test_a_job_that_cannot_be_claimed_on_a_full_disk_waits_until_there_is_space(jobs, reach, block, on_disk):
    job_id, token = reach("queued"), new_token("worker")
    repair = block(job_id)
    for _ in range(4):
        with pytest.raises(OSError, match=r"job\.json"):
            jobs.claim(job_id, token)
        record = jobs.get(job_id)
        assert (record.state, record.attempt, record.claim_token) == ("queued", 0, None)
        assert jobs.upkeep.sweep() == (job_id,)
    repair()
    claim = jobs.claim(job_id, token)
    assert claim is not None
    assert claim.record == on_disk(job_id) == jobs.get(job_id)
    assert claim.record.attempt == 1


def test_a_job_fails_at_its_claim_even_if_job_json_cannot_be_written(make_store, new, block):
    jobs = make_store(lease_s=0, max_attempts=1)
    job_id = jobs.create(new).id
    assert jobs.claim(job_id, new_token("worker")) is not None
    block(job_id)
    assert jobs.claim(job_id, new_token("worker")) is None
    assert jobs.get(job_id).state == "failed"


def test_a_job_that_cannot_be_made_durable_is_not_created(jobs, new, tmp_path, in_use):
    (tmp_path / "jobs").write_text("not a directory")
    with pytest.raises(OSError, match="jobs"):
        jobs.create(new)
    assert jobs.list().jobs == ()
    assert not in_use()


# The files that attempts leave.


@pytest.fixture
def litter(tmp_path):
    """Return what creates all files that attempts leave."""
    layout = DataDir(tmp_path)

    def put(job_id: str) -> None:
        places = [layout.spool(job_id), layout.result(job_id, 1), layout.result(job_id, 2)]
        for place in [*places, layout.job(job_id) / "result-1.part", layout.job(job_id) / "result-3.part"]:
            (place / "deep").mkdir(parents=True)
            (place / "deep" / "file").write_bytes(b"some bytes")

    return put


@pytest.fixture
def left(tmp_path):
    """Return what lists the files of a job."""

    def files(job_id: str) -> list[str]:
        return sorted(path.name for path in (tmp_path / "jobs" / job_id).iterdir())

    return files


def test_a_job_canceled_while_it_waits_leaves_only_its_record(jobs, reach, why, litter, left, tmp_path):
    job_id = reach("running")
    litter(job_id)
    assert jobs.retry(job_id, 1, why)
    assert "spool" in left(job_id)
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
    assert not jobs.renew_lease(job_id, 1)
    assert jobs.upkeep.sweep() == ()
    assert left(job_id) == before

    other = later.create(new).id
    assert later.claim(other, new_token("worker")) is not None
    litter(other)
    later.cancel(other)
    later.upkeep.sweep()
    later.upkeep.write_deferred()
    assert left(other) == ["job.json"]
    assert later.get(other).state == "canceled"


def test_files_of_a_worker_that_died_after_a_cancel_are_removed(jobs, reach, litter, left, redis_server):
    job_id = reach("canceled")
    litter(job_id)
    jobs.upkeep.sweep()
    jobs.upkeep.write_deferred()
    assert "spool" in left(job_id)
    # Its lease expires.
    redis_server.client().zadd("eckart:leases", {job_id: 1})
    jobs.upkeep.sweep()
    jobs.upkeep.write_deferred()
    assert left(job_id) == ["job.json"]
    assert redis_server.client().zcard("eckart:leases") == 0
    assert redis_server.client().scard("eckart:dirty") == 0


@pytest.mark.parametrize("verb", ["fail", "retry"])
def test_an_attempt_that_fails_its_job_leaves_its_record_and_its_finished_layers(
    make_store, new, why, litter, left, verb
):
    jobs = make_store(max_attempts=1)
    job_id = jobs.create(new).id
    assert jobs.claim(job_id, new_token("worker")) is not None
    litter(job_id)
    assert getattr(jobs, verb)(job_id, 1, why)
    assert left(job_id) == ["job.json", "spool"]


@pytest.mark.parametrize("verb", ["sweep", "claim"])
def test_a_job_that_fails_without_workers_leaves_its_record_and_its_finished_layers(
    make_store, new, litter, left, verb
):
    jobs = make_store(lease_s=0, max_attempts=1)
    job_id = jobs.create(new).id
    assert jobs.claim(job_id, new_token("worker")) is not None
    litter(job_id)
    if verb == "sweep":
        jobs.upkeep.sweep()
        jobs.upkeep.write_deferred()
    else:
        assert jobs.claim(job_id, new_token("another")) is None
    assert jobs.get(job_id).state == "failed"
    assert left(job_id) == ["job.json", "spool"]


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
    # Late calls of an earlier attempt, and a cancel, change nothing.
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
    jobs.upkeep.sweep()
    jobs.upkeep.write_deferred()
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
    assert left(job_id) == ["job.json", "spool"]


def test_files_are_removed_even_if_the_disk_is_full(jobs, reach, why, litter, left, tmp_path):
    job_id = reach("running")
    litter(job_id)
    (tmp_path / "jobs" / job_id / "job.json.part").mkdir()
    assert jobs.fail(job_id, 1, why)
    assert left(job_id) == ["job.json", "job.json.part", "spool"]


@pytest.fixture
def failed(reach, litter, tmp_path):
    """Return what creates a failed job whose layers were last changed so long ago."""

    def bring(age_s: float) -> str:
        job_id = reach("failed")
        litter(job_id)
        past = time.time() - age_s
        os.utime(tmp_path / "jobs" / job_id / "spool", (past, past))
        return job_id

    return bring


def test_the_layers_of_failed_jobs_are_removed_the_oldest_first_until_it_is_enough(
    jobs, reach, litter, failed, left
):
    waiting = reach("queued")
    litter(waiting)
    young, old = failed(10), failed(1000)

    jobs.upkeep.remove_failed_layers(enough=lambda: "spool" not in left(old))

    assert ["spool" in left(job_id) for job_id in (old, young, waiting)] == [False, True, True]
    jobs.upkeep.remove_failed_layers()
    assert ["spool" in left(job_id) for job_id in (young, waiting)] == [False, True]


def test_the_layers_of_a_job_that_failed_lately_stay(jobs, failed, left):
    job_id = failed(1000)
    jobs.upkeep.remove_failed_layers(older_than_s=60)
    assert "spool" in left(job_id)
    jobs.upkeep.remove_failed_layers(older_than_s=1e-3)
    assert "spool" not in left(job_id)


def test_the_layers_of_a_resumed_job_stay(jobs, failed, left):
    job_id = failed(1000)
    jobs.resume(job_id)
    jobs.upkeep.remove_failed_layers()
    assert "spool" in left(job_id)
