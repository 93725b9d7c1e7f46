"""Two owners on one service with keys: the same id, each its own job and result, from file to file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart import Client, ProblemError
from tests.e2e.conftest import QUICK, Service

SPEC = {"method": "svd", "rank": {"energy": 0.5}}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    keys = {"ECKART_API_KEYS": "alice:of-alice,bob:of-bob"}
    running = Service(tmp_path_factory.mktemp("keyed"), QUICK | keys)
    running.start()
    yield running
    running.stop()


def test_owners_do_not_meet(keyed, tmp_path):
    chance = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(24, 2, generator=chance) @ torch.randn(2, 16, generator=chance)
        for name in ("alice", "bob")
    }
    sources, jobs = {}, {}
    for name, weight in weights.items():
        sources[name] = tmp_path / f"{name}.safetensors"
        save_file({"same.weight": weight}, sources[name])
        with Client(keyed.url, api_key=f"of-{name}") as client:
            # First the same bytes from both, of which nobody may see that they are known.
            common = client.compress(sources["alice"], SPEC)
            assert client.report(common.id).layers[0].decomposition == "computed"
            client.upload(sources[name], id="m")
            jobs[name] = client.wait(client.submit("m", {"method": "svd", "rank": 2}).id).id
            client.download(jobs[name], tmp_path / f"{name}-result")
    for name, weight in weights.items():
        tensors = load_file(tmp_path / f"{name}-result" / f"{name}.safetensors")
        left, right = tensors.values()
        product = left @ right if left.shape[1] == right.shape[0] else right @ left
        assert torch.allclose(product, weight, atol=1e-4)
    with Client(keyed.url, api_key="of-bob") as bob:
        assert jobs["alice"] not in {job.id for job in bob.jobs()}
        with pytest.raises(ProblemError, match="No job has this id"):
            bob.job(jobs["alice"])
    with Client(keyed.url) as nobody, pytest.raises(ProblemError, match="with a key"):
        nobody.job(jobs["alice"])


def test_the_command_line_takes_the_key_from_the_environment(keyed, tmp_path):
    save_file({"a.weight": torch.eye(8)}, tmp_path / "m.safetensors")
    command = [sys.executable, "-m", "eckart", "plan", "m.safetensors", "--rank", "2", "--url", keyed.url]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for key, status in (("of-alice", 0), ("sekret", 1)):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment | {"ECKART_API_KEY": key},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert "sekret" not in done.stdout + done.stderr
