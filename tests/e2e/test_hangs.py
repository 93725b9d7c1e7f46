"""What hangs takes nothing else with it: processes that are stopped, disks that do not answer."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import save_file

from tests.e2e.conftest import Service
from tests.stopped import stopped_holder

LEASE_S = 60


def checkpoint(tmp_path, layers=8, rows=96, columns=64):
    generator = torch.Generator().manual_seed(5)
    path = tmp_path / "model.safetensors"
    save_file({f"l{i}.weight": torch.randn(rows, columns, generator=generator) for i in range(layers)}, path)
    return path


def test_a_stopped_process_that_locks_the_cache_keeps_no_job_from_its_end(service, tmp_path):
    first = service.client.compress(checkpoint(tmp_path), {"rank": 4})
    with stopped_holder(service.data_dir / "decompositions" / ".lock"):
        other = checkpoint(tmp_path, layers=9)
        job = service.client.submit(service.client.upload(other), {"rank": 4})

        assert service.client.wait(job.id, timeout_s=60).summary.layers_factored == 9
    assert first.state == "succeeded"


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """Start a service whose leases last longer than a test."""
    settings = {"ECKART_LEASE_S": str(LEASE_S), "ECKART_HEARTBEAT_S": "1", "ECKART_CACHE_BYTES": "0"}
    running = Service(tmp_path_factory.mktemp("patient"), settings)
    running.start()
    yield running
    running.stop()


@pytest.mark.parametrize("killed", ["the worker", "its child"])
def test_the_job_of_a_killed_process_goes_on_long_before_its_lease_ends(patient, tmp_path, killed):
    model = patient.client.upload(checkpoint(tmp_path, layers=30, rows=1100, columns=1000))
    job = patient.client.submit(model, {"rank": {"ratio": 0.3}})
    patient.await_true(lambda: patient.client.job(job.id).progress.layers_done >= 1)
    began = time.monotonic()
    doomed = [patient.pid("worker"), *patient.children("worker")]
    for pid in doomed if killed == "the worker" else doomed[1:]:
        os.kill(pid, signal.SIGKILL)

    def has_gone_on():
        now = patient.client.job(job.id)
        return now.state == "running" and now.attempt == 2

    patient.await_true(has_gone_on)
    assert time.monotonic() - began < LEASE_S / 2
    patient.client.cancel(job.id)


def test_a_worker_that_stops_in_the_middle_of_a_layer_gives_its_job_back(patient, tmp_path):
    model = patient.client.upload(checkpoint(tmp_path, layers=1, rows=5000, columns=4500))
    job = patient.client.submit(model, {"rank": {"energy": 0.9}})
    patient.await_true(lambda: patient.client.job(job.id).progress.layer is not None)
    worker = patient.pid("worker")
    os.kill(worker, signal.SIGTERM)

    patient.await_true(lambda: f"{job.id}: returned to the queue in the middle of layer" in patient.log())
    patient.client.cancel(job.id)
    patient.await_true(lambda: patient.pid("worker") != worker)
    assert "did not end within" not in patient.log()
