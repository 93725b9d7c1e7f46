"""What hangs takes nothing else with it: processes that are stopped, disks that do not answer."""

import torch
from safetensors.torch import save_file

from tests.stopped import stopped_holder


def checkpoint(tmp_path, layers=8):
    generator = torch.Generator().manual_seed(5)
    path = tmp_path / "model.safetensors"
    save_file({f"l{i}.weight": torch.randn(96, 64, generator=generator) for i in range(layers)}, path)
    return path


def test_a_stopped_process_that_locks_the_cache_keeps_no_job_from_its_end(service, tmp_path):
    first = service.client.compress(checkpoint(tmp_path), {"rank": 4})
    with stopped_holder(service.data_dir / "decompositions" / ".lock"):
        other = checkpoint(tmp_path, layers=9)
        job = service.client.submit(service.client.upload(other), {"rank": 4})

        assert service.client.wait(job.id, timeout_s=60).summary.layers_factored == 9
    assert first.state == "succeeded"
