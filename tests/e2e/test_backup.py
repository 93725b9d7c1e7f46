"""A copy of the data directory is a whole service: finished jobs are served, unfinished ones run.

Three services are started, one after another, since it takes a second one to show that a copy is whole.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.e2e.conftest import QUICK, Service

PAGE = Path(__file__).parents[2] / "docs" / "5-operations.md"
# So many that the job is not over before it is copied.
LAYERS = 12
SPEC = {"rank": {"ratio": 0.3}}
NO_CACHE = {"ECKART_CACHE_BYTES": "0"}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Copy a service in the middle of a job: while it runs, by the lines of the page, and after a stop."""
    folder = tmp_path_factory.mktemp("backup")
    original = Service(folder / "original", QUICK | NO_CACHE)
    original.data_dir.parent.mkdir()
    original.start()
    try:
        client = original.client
        model = folder / "model"
        model.mkdir()
        generator = torch.Generator().manual_seed(5)
        weights = {f"l{i:02d}.weight": torch.randn(800, 750, generator=generator) for i in range(LAYERS)}
        save_file(weights, model / "model.safetensors")
        # A companion may have the name of a record.
        (model / "job.json").write_text("{}")
        stored = client.upload(model, id="model")
        finished = client.compress(stored, {"rank": 4}).id
        client.download(finished, folder / "result")
        unfinished = client.submit(stored, SPEC).id
        original.await_true(lambda: client.job(unfinished).progress.layers_done >= 1)
        back_up(original.data_dir, folder / "running")
        assert client.job(unfinished).state == "running"
    finally:
        original.stop()
    shutil.copytree(original.data_dir, folder / "stopped", ignore=shutil.ignore_patterns("run"))
    assert (folder / "stopped" / "redis").is_dir()
    assert not (folder / "running" / "redis").exists()
    return folder, finished, unfinished


def back_up(data_dir, to):
    """Run the page's lines for a backup and for putting it back."""
    save, restore = re.findall(r"```sh\n(cd \"\$ECKART_DATA_DIR\"\n.*?)```", PAGE.read_text(), re.DOTALL)
    archives = to.with_name("archives")
    archives.mkdir()
    to.mkdir()
    for lines, folder in ((save, data_dir), (restore, to)):
        environment = {"ECKART_DATA_DIR": str(folder), "BACKUP": str(archives), "PATH": "/usr/bin:/bin"}
        subprocess.run(["sh", "-euc", lines], env=environment, check=True)


@pytest.mark.parametrize("copy", ["running", "stopped"])
def test_a_second_service_goes_on_where_the_copy_was_made(copies, tmp_path, copy):
    folder, finished, unfinished = copies
    second = Service(tmp_path, QUICK | NO_CACHE)
    (folder / copy).rename(second.data_dir)
    second.start()
    try:
        client = second.client
        assert client.job(finished).state == "succeeded"
        client.download(finished, tmp_path / "result")
        assert contents(tmp_path / "result") == contents(folder / "result")

        assert client.wait(unfinished, timeout_s=60).state == "succeeded"
        assert client.report(unfinished).totals.layers_factored == LAYERS
        assert len(list(client.jobs())) == 2
    finally:
        second.stop()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
