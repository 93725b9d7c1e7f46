"""After a 202 a job ends well, whatever is killed meanwhile, and its result is that of a calm run."""

import os
import signal
import subprocess
import sys
import time

import pytest
import redis
import torch
from safetensors.torch import save_file

from eckart import JobFailed, resumable
from tests.e2e.conftest import QUICK, Service

# A job is killed after 4: those left take longer than a worker needs to notice what happened.
LAYERS = 12
SPEC = {"method": "svd", "rank": {"ratio": 0.3}}
# With what earlier jobs have left, a job would be over before it could be killed.
NO_CACHE = {"ECKART_CACHE_BYTES": "0"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    running = Service(tmp_path_factory.mktemp("survivor"), QUICK | NO_CACHE)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def checkpoint(service, tmp_path_factory):
    generator = torch.Generator().manual_seed(3)
    path = tmp_path_factory.mktemp("survival") / "model.safetensors"
    weights = {f"l{i:02d}.weight": torch.randn(900, 800, generator=generator) for i in range(LAYERS)}
    save_file(weights, path)
    return service.client.upload(path, id="survival")


@pytest.fixture(scope="module")
def calm(service, checkpoint):
    """Note the digests of the result when nothing is killed."""
    return digests(service, service.client.compress(checkpoint, SPEC).id)


def digests(service, job_id):
    return {file.name: file.sha256 for file in service.client.report(job_id).output.files}


def begin(service, checkpoint, layers_done=4):
    """Start a job and let it get to its middle."""
    job = service.client.submit(checkpoint, SPEC)
    service.await_true(lambda: service.client.job(job.id).progress.layers_done >= layers_done)
    return job.id


def layers_done_twice(service, job_id):
    begun = service.layers_begun(job_id)
    assert len(begun) == LAYERS
    return sum(begun.values()) - LAYERS


def redis_client(service):
    sockets = list((service.data_dir / "run").glob("*.sock*"))
    return redis.Redis(unix_socket_path=str(sockets[0]))


def test_a_killed_worker_costs_at_most_two_layers(service, checkpoint, calm):
    job_id = begin(service, checkpoint)
    service.kill("worker")
    job = service.client.wait(job_id, timeout_s=60)

    assert job.attempt == 2
    assert layers_done_twice(service, job_id) <= 2
    assert digests(service, job_id) == calm


def test_a_killed_child_of_the_worker_costs_at_most_two_layers(service, checkpoint, calm):
    job_id = begin(service, checkpoint)
    for child in service.children("worker"):
        os.kill(child, signal.SIGKILL)
    service.client.wait(job_id, timeout_s=60)

    assert layers_done_twice(service, job_id) <= 2
    assert digests(service, job_id) == calm


def test_a_killed_redis_costs_nothing(service, checkpoint, calm):
    job_id = begin(service, checkpoint)
    service.kill("redis")
    service.client.wait(job_id, timeout_s=60)

    assert layers_done_twice(service, job_id) <= 2
    assert digests(service, job_id) == calm


def test_a_wiped_redis_costs_at_most_two_layers_and_keeps_finished_jobs(service, checkpoint, calm):
    finished = service.client.submit(checkpoint, {"rank": 4})
    service.client.wait(finished.id)
    job_id = begin(service, checkpoint)
    redis_client(service).flushall()

    assert service.client.job(finished.id).state == "succeeded"
    service.client.wait(job_id, timeout_s=60)
    assert layers_done_twice(service, job_id) <= 2
    assert digests(service, job_id) == calm
    assert service.client.report(finished.id).job_id == finished.id


def test_a_killed_api_costs_nothing(service, checkpoint, calm):
    job_id = begin(service, checkpoint)
    service.kill("api")
    service.client.wait(job_id, timeout_s=60)

    assert layers_done_twice(service, job_id) == 0
    assert digests(service, job_id) == calm


def test_a_doubled_message_is_worked_on_once(service, checkpoint, calm):
    from state.jobs.queue import JobQueue

    job_id = begin(service, checkpoint)
    (socket,) = (service.data_dir / "run").glob("*.sock")
    queue = JobQueue(f"redis+socket://{socket}")
    for _ in range(3):
        queue.send(job_id)
    job = service.client.wait(job_id, timeout_s=60)
    service.await_true(lambda: queue.depth() == 0)
    queue.close()

    assert job.attempt == 1
    assert layers_done_twice(service, job_id) == 0


def test_a_lost_message_is_sent_again(service, checkpoint):
    # The worker is stopped while the message is taken out of the queue.
    worker = service.pid("worker")
    os.kill(worker, signal.SIGSTOP)
    try:
        client = redis_client(service)
        job = service.client.submit(checkpoint, {"rank": 4})
        service.await_true(lambda: _drop_messages(client))
    finally:
        os.kill(worker, signal.SIGCONT)

    assert service.client.wait(job.id, timeout_s=60).state == "succeeded"


def _drop_messages(client):
    return bool(client.delete("eckart:broker:eckart"))


def test_a_canceled_job_stops_and_leaves_nothing(service, checkpoint):
    job_id = begin(service, checkpoint)
    canceled = service.client.cancel(job_id)

    assert canceled.state == "canceled"
    directory = service.data_dir / "jobs" / job_id
    service.await_true(lambda: sorted(path.name for path in directory.iterdir()) == ["job.json"])
    service.await_true(lambda: f"{job_id}: attempt 1 is no longer wanted" in service.log())
    with pytest.raises(JobFailed):
        service.client.wait(job_id)


def test_a_deleted_job_stops_and_leaves_no_trace(service, checkpoint):
    job_id = begin(service, checkpoint)
    service.client.delete(job_id)

    directory = service.data_dir / "jobs" / job_id
    service.await_true(lambda: not directory.exists())
    # A worker that had not noticed yet would write into the directory again.
    time.sleep(1.5)
    service.await_true(lambda: not directory.exists())


def test_a_terminated_worker_gives_its_job_back_at_once(service, checkpoint, calm):
    job_id = begin(service, checkpoint)
    os.kill(service.pid("worker"), signal.SIGTERM)
    job = service.client.wait(job_id, timeout_s=60)

    assert job.attempt == 1
    assert layers_done_twice(service, job_id) == 0
    assert digests(service, job_id) == calm


def test_a_zombie_publishes_nothing(service, checkpoint, calm):
    """A worker that was only asleep finds its job done by another one, and leaves it alone."""
    job_id = begin(service, checkpoint)
    (child,) = service.children("worker")
    os.kill(child, signal.SIGSTOP)
    try:
        service.await_true(lambda: service.client.job(job_id).state == "queued")
        run_second_worker(service, job_id)
        job = service.client.job(job_id)
        assert (job.state, job.attempt) == ("succeeded", 2)
    finally:
        os.kill(child, signal.SIGCONT)
    service.await_true(lambda: f"{job_id}: attempt 1 is no longer wanted" in service.log())

    # The zombie says that it stops, then takes away what it wrote.
    directory = service.data_dir / "jobs" / job_id
    service.await_true(lambda: sorted(path.name for path in directory.iterdir()) == ["job.json", "result-2"])
    assert digests(service, job_id) == calm


def run_second_worker(service, job_id):
    """Do the job in a process of its own, with the threads that the first worker has."""
    code = (
        "import sys, threading; from worker.settings import Settings; "
        "from worker.attempt import run_attempt; "
        "from state.redis import redis_client; from state.jobs.store import JobStore; s = Settings(); "
        "j = JobStore(redis_client(s.redis_url), s.data_dir, lease_s=3); "
        "run_attempt(sys.argv[1], j, s, worker='2nd', stopping=threading.Event())"
    )
    (socket,) = (service.data_dir / "run").glob("*.sock")
    environment = os.environ | {
        "ECKART_REDIS_URL": f"redis+socket://{socket}",
        "ECKART_DATA_DIR": str(service.data_dir),
        "ECKART_HEARTBEAT_S": "0.5",
        **NO_CACHE,
    }
    subprocess.run([sys.executable, "-c", code, job_id], env=environment, check=True, timeout=60)


def test_an_upload_goes_on_after_the_api_is_killed_without_sending_all_again(service, tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "RESUMABLE_ABOVE_BYTES", 0)
    monkeypatch.setattr(resumable, "REQUEST_BYTES", 4 << 20)
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.randn(1500, 2000)}, path)
    sent = []

    def kill_within_the_third_request(done, total, what):
        if what.startswith("upload "):
            sent.append(done)
        if len(sent) == 10:
            service.kill("api")

    name = service.client.upload(path, progress=kill_within_the_third_request)

    stored = service.data_dir / "checkpoints" / name / path.name
    assert stored.read_bytes() == path.read_bytes()
    assert min(sent[10:]) >= 8 << 20
    assert sent[-1] == path.stat().st_size
