"""worker/attempt.py: one attempt at a job, on a real Redis server and a real data directory."""

import errno
import json
import logging
import os
import shutil
import threading

import pytest
from safetensors.torch import load_file, save, save_file

from schemas.spec import CompressionSpec
from state.checkpoints.store import CheckpointStore
from state.data_dir import DataDir
from state.jobs.records import NewJob, new_token
from state.jobs.result_files import read_contents
from state.jobs.store import JobStore
from worker import lease
from worker.attempt import run_attempt
from worker.settings import Settings

CALM = threading.Event()
RUSHED = threading.Event()
RUSHED.set()


class Bench:
    """A data directory with one checkpoint, and a job store with jobs on it."""

    def __init__(self, redis_server, data_dir, source):
        self.settings = Settings(data_dir=data_dir, heartbeat_s=0.1)
        self.layout = DataDir(data_dir)
        self.jobs = JobStore(redis_server.client(), data_dir, lease_s=60, max_attempts=3)
        self.checkpoints = CheckpointStore(data_dir)
        self.stored = self.layout.checkpoint("m") / source.name
        self.store(source.read_bytes())

    def store(self, content):
        with self.checkpoints.receive("m", self.stored.name, content_bytes=None, limit_bytes=10**9) as upload:
            upload.write(content)
            upload.commit()

    def accept(self, rank=4):
        files = self.checkpoints.get("m").files
        spec = CompressionSpec.model_validate({"rank": rank})
        return self.jobs.create(NewJob(checkpoint="m", spec=spec.document(), files=files)).id

    def run(self, job_id, stopping=CALM):
        run_attempt(job_id, self.jobs, self.settings, worker="w", stopping=stopping)
        return self.jobs.get(job_id)


@pytest.fixture
def bench(redis_server, tmp_path, gaussian):
    source = tmp_path / "model.safetensors"
    save_file({f"l{i}.weight": gaussian(48, 40) for i in range(5)}, source)
    return Bench(redis_server, tmp_path / "data", source)


def test_a_finished_job_has_its_result_files_and_no_others(bench):
    record = bench.run(bench.accept())

    assert (record.state, record.attempt, record.result_fence) == ("succeeded", 1, 1)
    assert record.summary.layers_factored == 5
    assert record.single_file == "model.safetensors"
    directory = bench.layout.job(record.id)
    assert sorted(path.name for path in directory.iterdir()) == ["job.json", "result-1"]
    result = bench.layout.result(record.id, 1)
    assert sorted(path.name for path in result.iterdir()) == [
        ".files.json",
        "model.safetensors",
        "report.json",
    ]
    assert read_contents(result).keys() == {"model.safetensors", "report.json"}
    assert len(load_file(result / "model.safetensors")) == 10


@pytest.mark.parametrize("broken_off_by", [SystemExit(0), OSError(errno.ENOSPC, "full"), RuntimeError("any")])
def test_a_result_that_counts_stays_whatever_breaks_the_attempt_off_afterwards(bench, caplog, broken_off_by):
    """SIGTERM raises SystemExit between any two steps: here after Redis has said that the job succeeded."""

    def break_off(entry):
        if "succeeded in" in entry.msg:
            raise broken_off_by
        return True

    log = logging.getLogger("worker.attempt")
    log.addFilter(break_off)
    try:
        with caplog.at_level(logging.INFO, log.name):
            record = bench.run(bench.accept())
    finally:
        log.removeFilter(break_off)

    assert (record.state, record.attempt, record.result_fence) == ("succeeded", 1, 1)
    assert sorted(path.name for path in bench.layout.job(record.id).iterdir()) == ["job.json", "result-1"]
    assert read_contents(bench.layout.result(record.id, 1)).keys() == {"model.safetensors", "report.json"}


def test_one_shard_with_an_index_is_one_file(bench):
    index = {"weight_map": {f"l{i}.weight": "model.safetensors" for i in range(5)}}
    name = "model.safetensors.index.json"
    with bench.checkpoints.receive("m", name, content_bytes=None, limit_bytes=10**9) as upload:
        upload.write(json.dumps(index).encode())
        upload.commit()

    record = bench.run(bench.accept())

    assert record.single_file == "model.safetensors"
    assert (bench.layout.result(record.id, 1) / name).is_file()


def test_a_finished_job_is_left_alone(bench):
    record = bench.run(bench.accept())

    assert bench.run(record.id) == record


def test_a_job_of_another_worker_is_left_alone(bench):
    claim = bench.jobs.claim(bench.accept(), new_token("other"))

    assert bench.run(claim.record.id) == claim.record


def truncate(bench):
    bench.stored.chmod(0o644)
    bench.stored.write_bytes(bench.stored.read_bytes()[:-1])


def garble(bench):
    bench.stored.chmod(0o644)
    bench.stored.write_bytes(b"x" * bench.stored.stat().st_size)


def remove(bench):
    shutil.rmtree(bench.stored.parent)


def rot(bench):
    """Flip one bit, as a disk may, which no time and no size shows."""
    times = bench.stored.stat()
    content = bytearray(bench.stored.read_bytes())
    content[-1000] ^= 1
    bench.stored.chmod(0o644)
    bench.stored.write_bytes(content)
    os.utime(bench.stored, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(bench):
    """Store other weights under the same names, as a restored backup may hold."""
    weights = {name: weight + 1 for name, weight in load_file(bench.stored).items()}
    bench.checkpoints.delete("m")
    bench.store(save(weights))


def spoil_work(bench):
    (job,) = bench.layout.jobs.iterdir()
    (job / "spool").write_text("in the way")


@pytest.mark.parametrize("spoil", [truncate, garble, remove, rot, replace])
def test_input_that_is_not_what_was_stored_fails_the_job_at_once(bench, spoil):
    job_id = bench.accept()
    spoil(bench)
    record = bench.run(job_id)

    assert (record.state, record.attempt) == ("failed", 1)
    assert record.error.type == "urn:eckart:problem:checkpoint-changed"
    assert "Delete the checkpoint, upload it again" in record.error.detail
    assert [path.name for path in bench.layout.job(job_id).iterdir()] == ["job.json"]
    # Nothing of the other bytes lies under the digest of the stored ones.
    assert not list(bench.layout.decompositions.glob("*/*"))


def test_input_that_changes_after_it_was_checked_leaves_nothing_wrong(bench):
    def cached():
        return {path.name: path.read_bytes() for path in bench.layout.decompositions.glob("*/*")}

    bench.run(bench.accept())
    right = cached()
    shutil.rmtree(bench.layout.decompositions)
    job_id = bench.accept()

    class Writer:
        """Somebody who writes into the file when it has been checked."""

        looks = 0

        def is_set(self):
            self.looks += 1
            if self.looks == 2:
                garble(bench)
            return False

    record = bench.run(job_id, stopping=Writer())

    assert record.error.type == "urn:eckart:problem:checkpoint-changed"
    assert "changed while it was read" in record.error.detail
    assert cached().items() < right.items()


def test_what_only_the_work_showed_is_a_warning_of_the_job_too(bench, redis_server):
    tensors = load_file(bench.stored)
    tensors["l3.weight"][0, 0] = float("nan")
    bench.checkpoints.delete("m")
    bench.store(save(tensors))
    record = bench.run(bench.accept())

    (warning,) = record.late_warnings
    assert "NaN" in warning
    assert "l3.weight" in warning
    redis_server.wipe()
    assert bench.jobs.get(record.id).late_warnings == (warning,)


def test_a_budget_that_turns_out_not_to_suffice_fails_the_job_with_the_layer_and_the_remedy(bench):
    tensors = load_file(bench.stored)
    tensors["l3.weight"][0, 0] = float("nan")
    bench.checkpoints.delete("m")
    bench.store(save(tensors))
    record = bench.run(bench.accept(rank={"budget": 0.1}))

    assert (record.state, record.attempt) == ("failed", 1)
    assert record.error.type == "urn:eckart:problem:invalid-spec"
    assert [field.pointer for field in record.error.errors] == ["/spec/rank/budget"]
    for words in ('"l3", kept dense (not_finite)', "Give a budget of at least 0.2367"):
        assert words in record.error.detail


def test_an_error_of_the_machine_is_retried_three_times(bench):
    job_id = bench.accept()
    bench.layout.spool(job_id).write_text("in the way")
    states = [bench.run(job_id).state for _ in range(3)]
    record = bench.run(job_id)

    bench.layout.spool(job_id).unlink()
    assert [path.name for path in bench.layout.job(job_id).iterdir()] == ["job.json"]
    assert states == ["queued", "queued", "failed"]
    assert record.attempt == 3
    assert record.error.type == "urn:eckart:problem:worker-trouble"


def test_a_temporary_error_does_not_end_the_job(bench):
    job_id = bench.accept()
    bench.layout.spool(job_id).write_text("in the way")
    bench.run(job_id)
    bench.layout.spool(job_id).unlink()

    assert bench.run(job_id).state == "succeeded"


def test_a_stopping_worker_returns_the_job_without_counting_the_attempt(bench):
    job_id = bench.accept()
    record = bench.run(job_id, stopping=RUSHED)

    assert (record.state, record.attempt) == ("queued", 0)
    assert bench.run(job_id).state == "succeeded"


def test_the_result_of_a_lost_claim_is_discarded(bench):
    job_id = bench.accept()
    bench.jobs.claim(job_id, new_token("other"))
    bench.jobs.retry(job_id, 1, record_trouble())

    class Thief:
        """At the second check, gives the job to another worker, as the reaper would."""

        looks = 0

        def is_set(self):
            self.looks += 1
            if self.looks == 2:
                bench.jobs.retry(job_id, 2, record_trouble())
                bench.jobs.claim(job_id, new_token("thief"))
            return False

    record = bench.run(job_id, stopping=Thief())

    assert (record.state, record.fence) == ("running", 3)
    directory = bench.layout.job(job_id)
    assert not list(directory.glob("result-*"))


@pytest.mark.parametrize(
    ("spoil", "logged"), [(truncate, "found invalid input"), (spoil_work, "attempt 1 failed")]
)
def test_an_attempt_that_fails_after_its_job_has_ended_logs_that_it_is_not_wanted(
    bench, spoil, logged, caplog, monkeypatch
):
    job_id = bench.accept()
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(lease, "MIN_INTERVAL_S", 60)

    class Successor:
        """Cancels the job while this attempt renews no lease, and changes its files."""

        looks = 0

        def is_set(self):
            self.looks += 1
            if self.looks == 1:
                bench.jobs.cancel(job_id)
                spoil(bench)
            return False

    assert bench.run(job_id, stopping=Successor()).state == "canceled"
    assert logged in caplog.messages[-2]
    assert caplog.messages[-1] == f"job {job_id}: attempt 1 is no longer wanted"


def origins(bench, record):
    report = (bench.layout.result(record.id, record.result_fence) / "report.json").read_text()
    return {layer["decomposition"] for layer in json.loads(report)["layers"]}


def test_a_further_job_on_the_checkpoint_decomposes_nothing(bench):
    first, second = (bench.run(bench.accept(rank)) for rank in (4, 9))

    assert (origins(bench, first), origins(bench, second)) == ({"computed"}, {"cached"})


def test_a_cache_of_no_bytes_keeps_nothing(bench):
    bench.settings = bench.settings.model_copy(update={"cache_bytes": 0})
    first, second = (bench.run(bench.accept(rank)) for rank in (4, 9))

    assert origins(bench, first) == origins(bench, second) == {"computed"}
    assert not list(bench.layout.decompositions.glob("*/*"))


def test_a_checkpoint_deleted_under_a_canceled_job_leaves_no_decompositions(bench):
    job_id = bench.accept()

    class Deletion:
        """A client that cancels the job and deletes its checkpoint during the second layer."""

        looks = 0

        def is_set(self):
            self.looks += 1
            if self.looks == 2:
                bench.jobs.cancel(job_id)
                with bench.jobs.locked_for_deletion("m"):
                    bench.checkpoints.delete("m")
            return False

    record = bench.run(job_id, stopping=Deletion())

    assert record.state == "canceled"
    assert not list(bench.layout.decompositions.glob("*/*"))


@pytest.mark.parametrize(
    ("error", "kept"), [(OSError(errno.ENOSPC, "full"), 0), (OSError(errno.EIO, "broken"), 5)]
)
def test_a_full_disk_evicts_the_cache_before_the_next_attempt(bench, error, kept):
    bench.run(bench.accept())
    job_id = bench.accept(9)

    class Disk:
        """A disk that fails once, during a layer."""

        failed = False

        def is_set(self):
            if not self.failed:
                self.failed = True
                raise error
            return False

    disk = Disk()

    assert bench.run(job_id, stopping=disk).state == "queued"
    if error.errno == errno.ENOSPC:
        assert bench.jobs.get(job_id).attempts_without_progress == 0
    assert len(list(bench.layout.decompositions.glob("*/*"))) == kept
    assert bench.run(job_id, stopping=disk).state == "succeeded"


@pytest.mark.parametrize("field", ["files", "spec", "spec.rank", "spec.from_the_future"])
def test_a_job_of_another_release_goes_back_to_the_queue_uncounted(bench, field):
    job_id = bench.accept()
    path = bench.layout.record(job_id)
    document = json.loads(path.read_text())
    within, _, last = field.rpartition(".")
    (document[within] if within else document)[last] = 7 if last != "rank" else {"by_magic": 1}
    path.write_text(json.dumps(document))
    for _ in range(4):
        record = bench.run(job_id)
        assert (record.state, record.attempt, record.error) == ("queued", 0, None)
        assert bench.jobs.upkeep.sweep() == (job_id,)


def record_trouble():
    from schemas.problem import ProblemKind

    return ProblemKind.WORKER_TROUBLE.problem("Trouble.")


def store_companions(bench):
    for name, content in (("config.json", b'{"model_type": "bert"}'), ("vocab.txt", b"a\nb\n")):
        with bench.checkpoints.receive("m", name, content_bytes=None, limit_bytes=10**9) as upload:
            upload.write(content)
            upload.commit()


def test_companions_are_in_the_result_and_the_weights_are_its_one_file(bench):
    store_companions(bench)
    record = bench.run(bench.accept())

    assert record.single_file == "eckart.safetensors"
    result = bench.layout.result(record.id, 1)
    assert sorted(path.name for path in result.iterdir()) == [
        ".files.json",
        "README.md",
        "config.json",
        "eckart.safetensors",
        "report.json",
        "vocab.txt",
    ]
    assert (result / "vocab.txt").read_bytes() == b"a\nb\n"


def test_a_job_from_before_the_companions_has_none(bench):
    files = bench.checkpoints.get("m").files
    store_companions(bench)
    job_id = bench.jobs.create(
        NewJob(checkpoint="m", spec=CompressionSpec(rank=4).document(), files=files)
    ).id
    record = bench.run(job_id)

    assert record.single_file == "model.safetensors"
    result = bench.layout.result(record.id, 1)
    assert sorted(path.name for path in result.iterdir()) == [
        ".files.json",
        "model.safetensors",
        "report.json",
    ]


@pytest.mark.parametrize("damage", ["changed", "deleted"])
@pytest.mark.parametrize("name", ["config.json", "vocab.txt"])
def test_a_companion_that_is_not_what_was_stored_fails_the_job(bench, name, damage):
    store_companions(bench)
    job_id = bench.accept()
    path = bench.stored.with_name(name)
    path.unlink()
    if damage == "changed":
        path.write_bytes(b"{}")
    record = bench.run(job_id)

    assert record.state == "failed"
    assert record.error.type.endswith(":checkpoint-changed")
    assert name in record.error.detail


def test_an_attempt_that_finishes_more_layers_does_not_count(bench):
    job_id = bench.accept()

    class Trouble:
        """A machine that fails at the third layer that each attempt begins."""

        looks = 0

        def is_set(self):
            self.looks += 1
            if self.looks == 3:
                raise OSError(errno.EIO, "broken")
            return False

    # Planning and statistics are steps too; a few attempts get to the end of five layers.
    for _ in range(12):
        record = bench.run(job_id, stopping=Trouble())
        if record.state != "queued":
            break

    assert record.attempt > 3 or record.state == "succeeded"


def test_a_full_disk_is_waited_for_and_then_fails_the_job(bench):
    job_id = bench.accept()

    class FullDisk:
        def is_set(self):
            raise OSError(errno.ENOSPC, "full")

    records = [bench.run(job_id, stopping=FullDisk()) for _ in range(5)]
    assert {(record.state, record.attempts_without_progress) for record in records} == {("queued", 0)}

    bench.settings = bench.settings.model_copy(update={"disk_wait_s": 0})
    record = bench.run(job_id, stopping=FullDisk())
    assert (record.state, record.error.type) == ("failed", "urn:eckart:problem:out-of-space")


def test_a_failed_job_is_resumed_on_its_finished_layers(bench, caplog):
    caplog.set_level(logging.INFO)
    job_id = bench.accept()

    in_the_way = [bench.layout.job(job_id) / f"result-{fence}.part" for fence in range(1, 6)]
    for path in in_the_way:
        path.touch()
    while (record := bench.run(job_id)).state == "queued":
        pass
    for path in in_the_way:
        path.unlink()
    assert record.state == "failed"
    assert bench.layout.spool(job_id).is_dir()
    caplog.clear()
    bench.jobs.resume(job_id)

    assert bench.run(job_id).state == "succeeded"
    assert not [line for line in caplog.messages if ": layer " in line]
    assert not bench.layout.spool(job_id).exists()
