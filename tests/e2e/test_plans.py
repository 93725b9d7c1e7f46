"""Plans of checkpoints on disk: the headers that the client sends give the plan of the stored checkpoint."""

import json

import pytest
import torch
from safetensors.torch import save_file

from eckart import ProblemError
from eckart.cli import main


@pytest.fixture
def sharded(tmp_path):
    """Save a checkpoint of two shards with its index, and Gram matrices for one of its layers."""
    generator = torch.Generator().manual_seed(0)
    names = ("part-1.safetensors", "part-2.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    for number, name in enumerate(names):
        weight = torch.randn(64, 48, generator=generator)
        save_file({f"x{number}.weight": weight, f"x{number}.bias": torch.zeros(64)}, folder / name)
    weight_map = {f"x{i}.{kind}": name for i, name in enumerate(names) for kind in ("weight", "bias")}
    index = {"metadata": {"total_size": 25088}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"x1.gram": torch.eye(48)}, tmp_path / "grams.safetensors")
    return folder


@pytest.mark.parametrize("rank", [4, {"energy": 0.5}, {"budget": 0.5}], ids=str)
def test_a_plan_from_headers_is_that_of_the_stored_checkpoint(service, sharded, rank):
    calibration = sharded.parent / "grams.safetensors"
    from_headers = service.client.plan(sharded, {"rank": rank}, calibration=calibration)
    stored = service.client.plan(service.client.upload(sharded), {"rank": rank}, calibration=calibration)

    assert from_headers.checkpoint == "model"
    assert from_headers.model_copy(update={"checkpoint": stored.checkpoint}) == stored
    assert [layer.calibrated for layer in stored.layers] == [False, True]


def test_what_cannot_be_planned_is_not_uploaded(service, sharded):
    stored = set((service.data_dir / "checkpoints").glob("*"))
    with pytest.raises(ProblemError, match="spec") as refused:
        service.client.compress(sharded, {"rank": {"ratio": 7}})
    save_file({"other": torch.ones(1)}, sharded / "part-2.safetensors")
    with pytest.raises(ProblemError, match="part-2"):
        service.client.compress(sharded, {"rank": 4})

    assert [field.pointer for field in refused.value.errors] == ["/rank/ratio"]
    assert set((service.data_dir / "checkpoints").glob("*")) == stored


@pytest.mark.parametrize("command", ["plan", "compress"])
@pytest.mark.parametrize("field", ["checkpoint", "base"])
def test_a_path_that_is_misspelled_is_told_as_one(service, sharded, monkeypatch, capsys, command, field):
    """What is no path here may still be the id of a stored checkpoint; the service knows."""
    monkeypatch.chdir(sharded.parent)
    given = ["model.safetensor"] if field == "checkpoint" else ["model", "--base", "model.safetensor"]
    assert main([command, *given, "--rank", "4", "--layout", "dense", "--url", service.url]) == 1

    said = capsys.readouterr().err
    assert "No checkpoint has this id" in said
    assert "Nor is there such a file or folder here: model.safetensor." in said
