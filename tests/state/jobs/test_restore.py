"""state/jobs/store.py and scripts.py: all answers stay true when Redis is killed, set back or wiped."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from state.data_dir import DataDir
from state.errors import IdempotencyMismatch, JobNotFound, RedisUnavailable
from state.jobs.job_file import JobFiles
from state.jobs.records import Idempotency, new_token
from state.jobs.restoration import Restoration
from state.jobs.scripts import MAX_RESTORES, RESTORING, Scripts
from state.redis import redis_client
from tests.stopped import stopped_holder

STATES = ("queued", "running", "succeeded", "failed", "canceled")
ENDED = ("succeeded", "failed", "canceled")
KEY = Idempotency(key="k", fingerprint="f")


@pytest.mark.parametrize("state", STATES)
def test_a_killed_and_restarted_server_keeps_every_record(jobs, reach, redis_server, state):
    before = jobs.view(reach(state))
    redis_server.restart()
    assert jobs.view(before.record.id) == before


def test_a_server_that_is_down_raises_store_unavailable_until_it_is_back(jobs, reach, new, redis_server):
    job_id = reach("queued")
    redis_server.kill()
    for verb in (lambda: jobs.get(job_id), lambda: jobs.create(new), jobs.upkeep.sweep, jobs.list):
        with pytest.raises(RedisUnavailable):
            verb()
    redis_server.start()
    assert jobs.get(job_id).state == "queued"
    assert len(jobs.list().jobs) == 1


def test_a_lease_that_could_not_be_renewed_while_the_server_was_down_starts_again(
    make_store, new, redis_server
):
    hasty, jobs = make_store(lease_s=0), make_store()
    job_id = hasty.create(new).id
    assert hasty.claim(job_id, new_token("worker")) is not None
    redis_server.restart()
    assert jobs.upkeep.sweep() == ()
    assert jobs.renew_lease(job_id, 1)


@pytest.mark.parametrize("state", ENDED)
def test_an_ended_job_is_the_same_after_a_wipe(jobs, reach, redis_server, state, in_use):
    before = jobs.view(reach(state))
    redis_server.wipe()
    assert jobs.view(before.record.id) == before
    assert not in_use()


@pytest.mark.parametrize("verb", ["get", "list"])
def test_an_end_that_was_told_stays_though_its_worker_died_before_job_json(
    jobs, make_store, reach, summary, redis_server, verb
):
    job_id = reach("running")
    with closing(redis_client(redis_server.url)) as client:
        finish = ("finish", job_id, 1, summary.model_dump_json(), "model.safetensors", "")
        assert Scripts(client).run(*finish) == "done"
    read = {"get": lambda: jobs.get(job_id).state, "list": lambda: jobs.list().jobs[0].record.state}[verb]
    assert read() == "succeeded"
    redis_server.wipe()
    assert make_store().get(job_id).state == "succeeded"


@pytest.mark.parametrize("state", ["queued", "running"])
def test_an_unfinished_job_runs_again_after_a_wipe(jobs, reach, redis_server, state, in_use):
    before = jobs.get(reach(state))
    redis_server.wipe()
    view = jobs.view(before.id)
    assert (view.record.state, view.queue_position) == ("queued", 0)
    assert (view.record.attempt, view.record.fence) == (before.attempt, before.fence)
    assert in_use()
    assert jobs.upkeep.sweep() == (before.id,)


def test_a_worker_from_before_a_wipe_can_publish_nothing_after_it(jobs, reach, summary, redis_server):
    job_id = reach("running")
    redis_server.wipe()
    assert not jobs.finish(job_id, 1, summary)
    assert not jobs.renew_lease(job_id, 1)
    claim = jobs.claim(job_id, new_token("another"))
    assert claim is not None
    assert (claim.fence, claim.record.attempt) == (2, 2)
    assert not jobs.finish(job_id, 1, summary)
    assert jobs.finish(job_id, 2, summary)


def test_no_fence_is_issued_twice_however_often_the_server_is_wiped(make_store, new, redis_server):
    jobs = make_store(max_attempts=100)
    job_id = jobs.create(new).id
    fences = []
    for _ in range(5):
        claim = jobs.claim(job_id, new_token("worker"))
        assert claim is not None
        fences.append(claim.fence)
        redis_server.wipe()
    assert fences == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "first_call",
    ["get", "view", "list", "cancel", "claim", "create", "deleting_checkpoint", "sweep", "delete"],
)
def test_the_first_call_after_a_wipe_finds_everything(
    make_store, reach, new, redis_server, first_call, in_use
):
    queued, ended = reach("queued"), reach("succeeded")
    redis_server.wipe()
    jobs = make_store()
    calls = {
        "get": lambda: jobs.get(ended).state == "succeeded",
        "view": lambda: jobs.view(queued).queue_position == 0,
        "list": lambda: [v.record.id for v in jobs.list().jobs] == [ended, queued],
        "cancel": lambda: jobs.cancel(queued).state == "canceled",
        "claim": lambda: jobs.claim(queued, new_token("worker")) is not None,
        "create": lambda: jobs.create(new).state == "queued",
        "deleting_checkpoint": in_use,
        "sweep": lambda: jobs.upkeep.sweep() == (queued,),
        "delete": lambda: jobs.delete(queued).nbytes == 0,
    }
    assert calls[first_call]()
    assert jobs.get(ended).state == "succeeded"
    ids = [view.record.id for view in jobs.list().jobs]
    assert ids[-2:] == [ended, queued] or (first_call == "delete" and ids == [ended])


def test_an_idempotency_key_survives_a_wipe(jobs, new, redis_server):
    first = jobs.create(new, idempotency=KEY)
    redis_server.wipe()
    assert jobs.create(new, idempotency=KEY).id == first.id
    redis_server.wipe()
    with pytest.raises(IdempotencyMismatch):
        jobs.create(new, idempotency=Idempotency(key="k", fingerprint="other"))


def test_a_deleted_job_does_not_come_back_after_a_wipe(jobs, reach, redis_server):
    job_id = reach("succeeded")
    jobs.delete(job_id)
    redis_server.wipe()
    with pytest.raises(JobNotFound):
        jobs.get(job_id)
    assert jobs.list().jobs == ()


def test_a_single_lost_record_is_read_from_disk(jobs, reach, redis_server):
    before = jobs.get(reach("succeeded"))
    client = redis_server.client()
    client.delete(f"eckart:job:{before.id}")
    assert jobs.get(before.id) == before


def test_a_job_that_redis_lost_can_still_be_canceled_and_deleted(jobs, reach, redis_server):
    job_id = reach("queued")
    redis_server.client().delete(f"eckart:job:{job_id}")
    assert jobs.cancel(job_id).state == "canceled"
    redis_server.client().delete(f"eckart:job:{job_id}")
    jobs.delete(job_id)
    with pytest.raises(JobNotFound):
        jobs.get(job_id)


def test_a_job_json_that_cannot_be_read_affects_only_its_own_job(jobs, reach, redis_server, tmp_path, caplog):
    broken, whole = reach("succeeded"), reach("succeeded")
    (tmp_path / "jobs" / broken / "job.json").write_text('{"id": ')
    (tmp_path / "jobs" / "lost+found").mkdir()
    redis_server.wipe()
    assert {view.record.id: view.record.readable for view in jobs.list().jobs} == {whole: True, broken: False}
    assert broken in caplog.text


@pytest.mark.parametrize("then", [*ENDED, "running"])
def test_a_server_set_back_in_time_catches_up_from_disk(jobs, reach, summary, why, redis_server, then):
    job_id = reach("queued")
    saved = redis_server.save()
    assert jobs.claim(job_id, new_token("worker")) is not None
    {
        "running": lambda: None,
        "succeeded": lambda: jobs.finish(job_id, 1, summary),
        "failed": lambda: jobs.fail(job_id, 1, why),
        "canceled": lambda: jobs.cancel(job_id),
    }[then]()
    redis_server.set_back(saved)
    record = jobs.get(job_id)
    assert record.state == ("queued" if then == "running" else then)
    assert record.fence == 1


def test_a_server_set_back_unnoticed_does_not_undo_what_is_on_disk(
    jobs, reach, summary, redis_server, set_back_unnoticed
):
    # A replica that takes over may lag behind, and may have been given the scripts by others.
    job_ids = [reach("queued") for _ in range(3)]
    saved = redis_server.save()
    for job_id in job_ids:
        assert jobs.claim(job_id, new_token("worker")) is not None
        assert jobs.finish(job_id, 1, summary)
    set_back_unnoticed(saved, same_server=True)
    claimed, canceled, deleted = job_ids
    assert jobs.get(claimed).state == "queued"
    assert jobs.claim(claimed, new_token("another")) is None
    assert jobs.get(claimed).state == "succeeded"
    assert jobs.cancel(canceled).state == "succeeded"
    jobs.delete(deleted)
    with pytest.raises(JobNotFound):
        jobs.get(deleted)


@pytest.fixture
def set_back_unnoticed(redis_server):
    """Return what sets the server back as a lagging replica is that takes over: it has scripts and marker."""

    def set_back(saved, *, same_server):
        redis_server.set_back(saved)
        client = redis_server.client()
        scripts = Scripts(client)
        scripts.load()
        if same_server:
            client.set("eckart:ready", client.info("server")["run_id"])
        assert scripts.ready()

    return set_back


@pytest.mark.parametrize("same_server", [False, True])
def test_a_job_that_a_server_set_back_unnoticed_lacks_is_found_by_the_next_sweep(
    jobs, reach, redis_server, set_back_unnoticed, in_use, same_server
):
    before = reach("queued")
    saved = redis_server.save()
    jobs.list()
    answered, ended = reach("queued"), reach("succeeded")
    set_back_unnoticed(saved, same_server=same_server)
    assert [view.record.id for view in jobs.list().jobs] == [before]
    assert answered in jobs.upkeep.sweep()
    assert [view.record.id for view in jobs.list().jobs] == [ended, answered, before]
    assert in_use()
    # The count is up to date again, so that nothing is restored at the next sweep.
    assert Scripts(redis_server.client()).ready()
    jobs.upkeep.sweep()
    assert redis_server.client().get("eckart:created") == "3"


@pytest.mark.parametrize("then", [*ENDED, "running"])
def test_a_transition_that_another_server_lacks_is_restored_by_the_next_sweep(
    jobs, reach, summary, why, redis_server, set_back_unnoticed, then
):
    job_id = reach("queued")
    saved = redis_server.save()
    assert jobs.claim(job_id, new_token("worker")) is not None
    if then == "succeeded":
        jobs.finish(job_id, 1, summary)
    elif then == "failed":
        jobs.fail(job_id, 1, why)
    elif then == "canceled":
        jobs.cancel(job_id)
    set_back_unnoticed(saved, same_server=False)
    assert jobs.get(job_id).state == "queued"
    jobs.upkeep.sweep()
    record = jobs.get(job_id)
    assert (record.state, record.fence) == ("queued" if then == "running" else then, 1)


def test_deleted_jobs_do_not_make_a_server_look_set_back(jobs, reach, redis_server):
    for _ in range(3):
        jobs.delete(reach("queued"))
    redis_server.wipe()
    for _ in range(2):
        jobs.upkeep.sweep()
        assert Scripts(redis_server.client()).ready()
    assert redis_server.client().get("eckart:created") == "3"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("notices", ["the next request", "the next sweep"])
def test_a_deleted_job_stays_deleted_when_the_server_is_set_back(
    jobs, reach, redis_server, set_back_unnoticed, tmp_path, in_use, state, notices
):
    deleted, other = reach(state), reach("succeeded")
    saved = redis_server.save()
    jobs.delete(deleted)
    if notices == "the next request":
        redis_server.set_back(saved)
    else:
        set_back_unnoticed(saved, same_server=False)
        assert jobs.upkeep.sweep() == ()
    with pytest.raises(JobNotFound):
        jobs.get(deleted)
    assert jobs.claim(deleted, new_token("worker")) is None
    assert [view.record.id for view in jobs.list().jobs] == [other]
    assert not in_use()
    assert [path.name for path in DataDir(tmp_path).jobs.iterdir()] == [other]


def test_a_job_in_the_making_outlives_a_restore(jobs, reach, redis_server, tmp_path):
    """Its record comes before its directory, under the lock of its files."""
    job_id = reach("queued")
    paths = DataDir(tmp_path)
    scripts = Scripts(redis_server.client())
    files = JobFiles(paths, scripts)
    with files.lock(job_id):
        paths.job(job_id).rename(tmp_path / "aside")
        redis_server.client().set(RESTORING, "turn")
        Restoration(paths, scripts, files, lease_us=1).run("turn")
        (tmp_path / "aside").rename(paths.job(job_id))
    assert jobs.get(job_id).state == "queued"


def test_while_one_process_restores_the_others_wait_for_some_time_only(
    jobs, make_store, reach, redis_server, monkeypatch
):
    reach("queued")
    redis_server.wipe()
    client = redis_server.client()
    client.set("eckart:restoring", "another")
    monkeypatch.setattr("state.jobs.scripts.WAIT_S", 0.2)
    with pytest.raises(RedisUnavailable):
        jobs.list()
    client.delete("eckart:restoring")
    assert len(make_store().list().jobs) == 1


def test_a_job_that_is_deleted_while_it_is_restored_stays_deleted(jobs, reach, redis_server, tmp_path):
    job_id, other = reach("succeeded"), reach("succeeded")
    redis_server.wipe()
    paths, scripts = DataDir(tmp_path), Scripts(redis_server.client())
    files = JobFiles(paths, scripts)
    read = files.stored

    def delete_once_read(each):
        found = read(each)
        if each == job_id:
            files.delete(job_id)
        return found

    files.stored = delete_once_read  # type: ignore[method-assign]
    redis_server.client().set(RESTORING, "turn")
    Restoration(paths, scripts, files, lease_us=1).run("turn")
    redis_server.client().delete(RESTORING)
    assert [view.record.id for view in jobs.list().jobs] == [other]


def test_many_jobs_are_restored_in_batches(jobs, reach, redis_server, monkeypatch):
    ids = [reach(state) for state in STATES * 2]
    before = jobs.list().jobs
    monkeypatch.setattr("state.jobs.job_file.BATCH", 3)
    redis_server.wipe()
    after = jobs.list().jobs
    assert [view.record.id for view in after] == [view.record.id for view in before] == ids[::-1]
    ended = {view.record.id: view for view in before if view.record.state in ENDED}
    assert {view.record.id: view for view in after if view.record.id in ended} == ended


def test_a_cancel_holds_though_the_server_was_set_back_unnoticed(
    jobs, reach, redis_server, set_back_unnoticed, on_disk
):
    job_id = reach("queued")
    saved = redis_server.save()
    assert jobs.claim(job_id, new_token("worker")) is not None
    set_back_unnoticed(saved, same_server=True)
    record = jobs.cancel(job_id)
    assert (record.state, record.fence) == ("canceled", 1)
    assert jobs.get(job_id) == on_disk(job_id) == record


def test_lost_messages_are_sent_again_in_order_after_a_wipe(jobs, reach, redis_server):
    ids = tuple(reach("queued") for _ in range(8))
    redis_server.wipe()
    assert jobs.upkeep.sweep() == ids


def test_two_processes_that_restore_at_once_agree(make_store, reach, redis_server):
    ids = [reach(state) for state in STATES * 2]
    redis_server.wipe()
    stores = [make_store() for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(lambda n: stores[n % 4].list(), range(8)))
    assert all([view.record.id for view in page.jobs] == ids[::-1] for page in pages)
    assert all(page == pages[0] for page in pages)


CREATOR = """
import sys
from pathlib import Path
from schemas.spec import CompressionSpec
from state.redis import redis_client
from state.jobs.store import JobStore
from state.jobs.records import NewJob
jobs = JobStore(redis_client(sys.argv[1]), Path(sys.argv[2]))
new = NewJob(checkpoint="my-model", spec=CompressionSpec(rank=8).document())
while True:
    print(jobs.create(new).id, flush=True)
"""


def test_every_created_job_survives_a_kill_of_its_process_and_a_wipe(jobs, redis_server, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", CREATOR, redis_server.url, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    answered = [process.stdout.readline().strip() for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    answered += process.stdout.read().split()
    process.wait()
    process.stdout.close()
    redis_server.wipe()
    assert {jobs.get(job_id).state for job_id in answered} == {"queued"}
    assert set(answered) <= set(jobs.upkeep.sweep())


def test_jobs_are_created_while_the_server_is_wiped_again_and_again(jobs, make_store, new, redis_server):
    def create(store) -> list[str]:
        return [store.create(new).id for _ in range(15)]

    stores = [make_store() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(create, store) for store in stores]
        # Fewer wipes than one call tolerates, so that it cannot fail by unlucky timing.
        for _ in range(MAX_RESTORES - 1):
            redis_server.wipe()
            time.sleep(0.02)
    ids = [job_id for future in running for job_id in future.result()]
    assert len(set(ids)) == 45
    assert {jobs.get(job_id).state for job_id in ids} == {"queued"}
    assert {view.record.id for view in jobs.list(limit=100).jobs} == set(ids)


def test_what_a_stopped_process_locks_is_restored_all_the_same(jobs, reach, redis_server, tmp_path):
    job_id = reach("queued")
    redis_server.wipe()
    with stopped_holder(DataDir(tmp_path).lock("job", job_id)):
        assert jobs.get(job_id).state == "queued"
