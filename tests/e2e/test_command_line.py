"""The verbs of the command line with the real service: two jobs from their start to their removal."""

import json

import pytest
import torch
from safetensors.torch import save_file

from eckart.cli import main


@pytest.fixture
def eckart(service, tmp_path, monkeypatch, capsys):
    """Run a verb with --json beside a model; return its status, its document and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECKART_URL", service.url)
    generator = torch.Generator().manual_seed(0)
    weights = {f"h.{i}.weight": torch.randn(64, 48, generator=generator) for i in range(2)}
    save_file(weights, tmp_path / "verbs.safetensors")

    def run(*line):
        status = main([*line, "--json"])
        out, err = capsys.readouterr()
        return status, json.loads(out or "null"), err

    return run


def test_two_jobs_are_made_listed_compared_watched_and_removed(eckart):
    _, a, _ = eckart("compress", "verbs.safetensors", "--rank", "8", "--out", "a")
    _, b, _ = eckart("compress", "verbs.safetensors", "--method", "cx", "--rank", "4", "--out", "b")
    _, jobs, _ = eckart("jobs", "--state", "succeeded")
    stored = next(job["checkpoint"] for job in jobs["jobs"] if job["id"] == a["job_id"])
    _, of_stored, _ = eckart("jobs", "--checkpoint", stored)
    _, comparison, _ = eckart("compare", "a", b["job_id"])
    _, watched, _ = eckart("watch", a["job_id"], "--out", "again")
    _, canceled, _ = eckart("cancel", a["job_id"])
    _, checkpoints, _ = eckart("checkpoints")

    assert [job["id"] for job in of_stored["jobs"]] == [b["job_id"], a["job_id"]]
    assert comparison["same_input"]
    assert {x["field"]: (x["a"], x["b"]) for x in comparison["spec"]}["/rank"] == (8, 4)
    assert [layer["b"]["rank"] for layer in comparison["layers"]] == [4, 4]
    assert (watched["state"], canceled["state"]) == ("succeeded", "succeeded")
    assert stored in [checkpoint["id"] for checkpoint in checkpoints["checkpoints"]]

    for kind, name in (("job", a["job_id"]), ("job", b["job_id"]), ("checkpoint", stored)):
        assert eckart("delete", kind, name)[:2] == (0, {"deleted": {"kind": kind, "id": name}})
        status, document, said = eckart("delete", kind, name)
        assert (status, document) == (1, None)
        assert "not found" in said


def test_what_has_succeeded_cannot_be_resumed(eckart):
    _, report, _ = eckart("compress", "verbs.safetensors", "--rank", "8")
    status, document, said = eckart("resume", report["job_id"])

    assert (status, document) == (1, None)
    assert said.startswith("eckart: ")
    assert len(said.splitlines()) == 1
