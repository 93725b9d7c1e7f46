"""jobs/store.py, checkpoints: a job keeps its checkpoints, and no job is created while one is deleted."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from schemas.checkpoint import FileInfo
from state.checkpoints.store import CheckpointStore
from state.errors import CheckpointGone, CheckpointInUse, CheckpointNotFound
from state.jobs.records import NewJob, new_token


@pytest.fixture(params=["calibration", "base"])
def use(request):
    """Give the field of a spec that names a second checkpoint."""
    return request.param


@pytest.fixture
def needing(new, use):
    """Return a job that needs a second checkpoint."""
    return new.model_copy(update={"spec": new.spec | {use: "my-grams"}})


STATES = ("queued", "running", "succeeded", "failed", "canceled")


@pytest.mark.parametrize("state", STATES)
def test_a_checkpoint_is_in_use_while_a_job_is_unfinished(jobs, reach, state, in_use):
    job_id = reach(state)
    unfinished = state in {"queued", "running"}
    assert in_use() is unfinished
    if unfinished:
        with pytest.raises(CheckpointInUse, match="cancel the job"), jobs.locked_for_deletion("my-model"):
            pytest.fail("a job needs it")
        jobs.cancel(job_id)
    with jobs.locked_for_deletion("my-model"):
        pass
    assert not in_use()


@pytest.mark.parametrize("wiped", [False, True])
@pytest.mark.parametrize("end", ["finish", "fail", "cancel", "delete"])
def test_a_checkpoint_that_a_spec_names_is_in_use_as_long_as_the_checkpoint(
    jobs, needing, summary, why, end, wiped, redis_server
):
    job_id = jobs.create(needing).id
    if wiped:
        redis_server.wipe()
    fence = jobs.claim(job_id, new_token("worker")).fence
    for name in ("my-model", "my-grams"):
        with pytest.raises(CheckpointInUse), jobs.locked_for_deletion(name):
            pytest.fail("a job needs it")
    {
        "finish": lambda: jobs.finish(job_id, fence, summary),
        "fail": lambda: jobs.fail(job_id, fence, why),
        "cancel": lambda: jobs.cancel(job_id),
        "delete": lambda: jobs.delete(job_id),
    }[end]()
    for name in ("my-model", "my-grams"):
        with jobs.locked_for_deletion(name):
            pass


def test_a_checkpoint_that_its_own_spec_names_is_free_again_at_the_end(jobs, needing, use):
    itself = needing.spec | {use: "my-model"}
    job_id = jobs.create(needing.model_copy(update={"spec": itself})).id
    with pytest.raises(CheckpointInUse), jobs.locked_for_deletion("my-model"):
        pytest.fail("a job needs it")
    jobs.cancel(job_id)
    with jobs.locked_for_deletion("my-model"):
        pass


def test_no_job_is_created_while_a_checkpoint_that_its_spec_names_is_deleted(jobs, needing):
    with jobs.locked_for_deletion("my-grams"), pytest.raises(CheckpointGone):
        jobs.create(needing)
    assert jobs.create(needing).state == "queued"


def test_a_job_is_created_with_the_files_it_was_planned_with_or_not_at_all(jobs, needing, store_file, use):
    file = store_file("my-grams", "grams.safetensors")
    record = jobs.create(needing.model_copy(update={f"{use}_files": (file,)}))
    assert list(record.reference_files.given()) == [(use, (file,))]
    other = file.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(CheckpointGone):
        jobs.create(needing.model_copy(update={f"{use}_files": (other,)}))
    assert len(jobs.list().jobs) == 1


def test_no_job_is_created_for_a_checkpoint_while_it_is_deleted(jobs, new):
    with jobs.locked_for_deletion("my-model"):
        with pytest.raises(CheckpointGone):
            jobs.create(new)
        assert jobs.create(new.model_copy(update={"checkpoint": "another"})).state == "queued"
    assert jobs.create(new).state == "queued"


def test_a_deletion_holds_even_if_the_server_stops_in_its_middle(jobs, new, redis_server):
    with jobs.locked_for_deletion("my-model"):
        redis_server.kill()
    redis_server.start()
    with pytest.raises(CheckpointGone):
        jobs.create(new)


def test_jobs_are_created_again_after_a_deletion_failed(jobs, new):
    with pytest.raises(RuntimeError), jobs.locked_for_deletion("my-model"):
        raise RuntimeError
    assert jobs.create(new).state == "queued"


@pytest.mark.parametrize(
    "change",
    [{"sha256": "0" * 64}, {"size_bytes": 1}, {"name": "b.safetensors"}],
    ids=lambda c: next(iter(c)),
)
def test_a_job_is_created_for_the_bytes_it_was_planned_on_or_not_at_all(jobs, new, store_file, change):
    file = store_file("my-model", "a.safetensors")
    assert jobs.create(new.model_copy(update={"files": (file,)})).files == (file,)
    other = file.model_copy(update=change)
    with pytest.raises(CheckpointGone):
        jobs.create(new.model_copy(update={"files": (other,)}))
    assert len(jobs.list().jobs) == 1


def test_a_refused_job_leaves_nothing(jobs, new, tmp_path, redis_server):
    file = FileInfo(name="a.safetensors", size_bytes=1, sha256="0" * 64)
    with pytest.raises(CheckpointGone):
        jobs.create(new.model_copy(update={"files": (file,)}))
    assert not (tmp_path / "jobs").exists() or not any((tmp_path / "jobs").iterdir())
    assert set(redis_server.client().keys()) == {"eckart:ready", "eckart:created"}


def test_a_created_job_has_its_files_even_if_a_deletion_ran_at_the_same_time(
    make_store, new, store_file, tmp_path
):
    jobs, others, checkpoints = make_store(), make_store(), CheckpointStore(tmp_path)

    def make(planned: NewJob) -> str | None:
        try:
            return jobs.create(planned).id
        except CheckpointGone:
            return None

    def delete() -> bool:
        try:
            with others.locked_for_deletion("my-model"):
                checkpoints.delete("my-model")
        except (CheckpointInUse, CheckpointNotFound):
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        for _ in range(25):
            planned = new.model_copy(update={"files": (store_file("my-model", "a.safetensors"),)})
            made, deleted = pool.submit(make, planned), pool.submit(delete)
            job_id = made.result()
            assert deleted.result() is (job_id is None)
            assert checkpoints.exists("my-model") is (job_id is not None)
            if job_id is not None:
                jobs.delete(job_id)
