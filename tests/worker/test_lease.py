"""worker/lease.py: work that cannot be broken off ends with its process, and the job goes back."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import save_file

from schemas.spec import CompressionSpec
from state.checkpoints.store import CheckpointStore
from state.jobs.records import NewJob
from state.jobs.store import JobStore
from worker.lease import EXIT_STATUS

# The second layer never ends, whether it hangs or just takes long.
WORK = """
import os, sys, threading, torch
from worker import attempt, factor_pass, lease
print(len(os.listdir("/proc/self/task")), torch.cuda.is_initialized())
from worker.settings import Settings
from state.jobs.store import JobStore
from state.redis import redis_client

stopping = threading.Event()
factor = factor_pass.factor_layer

def factor_or_hang(task, *arguments, **options):
    if task.number:
        if sys.argv[2] == "stop":
            stopping.set()
        if sys.argv[2] == "cancel":
            jobs.cancel(sys.argv[1])
        threading.Event().wait()
    return factor(task, *arguments, **options)

factor_pass.factor_layer = factor_or_hang
settings = Settings(layer_limit_s=float(sys.argv[3]))
jobs = JobStore(redis_client(settings.redis_url), settings.data_dir)
attempt.run_attempt(sys.argv[1], jobs, settings, worker="w", stopping=stopping)
"""
# Its own threads are ended by OpenBLAS before a fork; those of OpenMP are not.
FORKABLE = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture
def work(redis_server, tmp_path, gaussian):
    """Return what runs a job of two layers in a process, and the job afterwards."""
    source = tmp_path / "model.safetensors"
    save_file({f"l{i}.weight": gaussian(300, 200) for i in range(2)}, source)
    checkpoints = CheckpointStore(tmp_path / "data")
    with checkpoints.receive("m", source.name, content_bytes=None, limit_bytes=10**9) as upload:
        upload.write(source.read_bytes())
        upload.commit()
    jobs = JobStore(redis_server.client(), tmp_path / "data")
    spec = CompressionSpec(rank=4).model_dump(mode="json", exclude_none=True)
    job_id = jobs.create(NewJob(checkpoint="m", spec=spec, files=checkpoints.get("m").files)).id
    environment = {"ECKART_REDIS_URL": redis_server.url, "ECKART_DATA_DIR": str(tmp_path / "data")}

    def run(how, *, layer_limit_s):
        ended = subprocess.run(
            [sys.executable, "-c", WORK, job_id, how, str(layer_limit_s)],
            env=os.environ | environment | {"ECKART_HEARTBEAT_S": "0.3", "ECKART_THREADS": "1"} | FORKABLE,
            capture_output=True,
            timeout=120,
            text=True,
            check=False,
        )
        return ended, jobs, jobs.get(job_id)

    return run


def test_a_layer_that_hangs_ends_its_process_and_counts_only_without_progress(work):
    ended, _, record = work("hang", layer_limit_s=1)

    assert ended.returncode == EXIT_STATUS, ended.stderr
    assert "factor_or_hang" in ended.stderr  # where it stood
    # The worker imports torch before it forks, so the import may begin no thread and no CUDA.
    assert ended.stdout == "1 False\n"
    # The first layer was finished.
    assert (record.state, record.attempt, record.attempts_without_progress) == ("queued", 1, 0)
    assert 0 < record.furthest < 1


def test_a_worker_that_stops_in_the_middle_of_a_layer_gives_the_job_back(work):
    ended, jobs, record = work("stop", layer_limit_s=600)

    assert ended.returncode == EXIT_STATUS, ended.stderr
    assert (record.state, record.attempt, record.attempts_without_progress) == ("queued", 0, 0)
    assert 0 < record.furthest < 1
    assert jobs.upkeep.sweep() == (record.id,)


def test_a_job_that_is_canceled_in_the_middle_of_a_layer_frees_its_process(work):
    ended, _, record = work("cancel", layer_limit_s=600)

    assert ended.returncode == EXIT_STATUS, ended.stderr
    assert record.state == "canceled"
