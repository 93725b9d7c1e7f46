"""worker/__main__.py: `python -m worker compress` and `python -m worker plan`, as a user types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from worker.__main__ import main

ROOT = Path(__file__).parents[2]
SPEC = '{"rank": {"ratio": 0.5}}'


def run(*arguments):
    command = [sys.executable, "-m", "worker", "compress", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def refused(capsys, monkeypatch):
    """Run a command in this process, where it does not start torch anew; return what it says as it fails."""
    monkeypatch.setenv("ECKART_THREADS", str(torch.get_num_threads()))

    def call(verb, *arguments):
        assert main([verb, *map(str, arguments)]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    return call


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("out", ["out", "out/model.safetensors", "out/report.json"]),
        ("small.safetensors", ["small.report.json", "small.safetensors"]),
    ],
)
def test_a_file_is_compressed_into_a_directory_or_a_file(save, gaussian, tmp_path, target, files):
    source = save({"a.weight": gaussian(64, 64)})
    (tmp_path / "spec.json").write_text(SPEC)
    done = run(source, tmp_path / target, "--spec", tmp_path / "spec.json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers_factored"] == 1
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert made == sorted([*files, "model.safetensors", "spec.json"])
    (result,) = (name for name in files if name.endswith(".safetensors"))
    assert set(load_file(tmp_path / result)) == {"a.0.weight", "a.1.weight"}


@pytest.mark.parametrize(
    ("source", "target", "spec", "words"),
    [
        ("missing.safetensors", "out", SPEC, "missing.safetensors"),
        ("model.safetensors", "model.safetensors", SPEC, "give a new name"),
        (
            "model.safetensors",
            "out",
            '{"rank": {"budget": 0.01}}',
            "spec/rank/budget: The selected layers need",
        ),
        ("model.safetensors", "out", '{"rank": {"ratio": 2}}', "/rank/ratio"),
        ("model.safetensors", "out", '{"rank": 4, "colour": 1}', "/colour"),
        ("model.safetensors", "out", "{nonsense", "Invalid JSON"),
        ("model.safetensors", "out", "no-such-file.json", "no-such-file.json"),
        ("broken.safetensors", "out", SPEC, "broken.safetensors: This is not safetensors"),
        (".", "out", SPEC, "name the file or the index"),
    ],
)
def test_an_error_is_printed_in_one_line(save, gaussian, tmp_path, refused, source, target, spec, words):
    save({"a.weight": gaussian(8, 8)})
    (tmp_path / "broken.safetensors").write_bytes(b"abc")

    said = refused("compress", tmp_path / source, tmp_path / target, "--spec", spec)
    assert words in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ECKART_WORKERS", "0", "ECKART_WORKERS: "),
        ("ECKART_DEVICE", "gpu", "ECKART_DEVICE: "),
        ("ECKART_DEVICE", "cuda", "ECKART_DEVICE=cuda, but torch finds no CUDA device"),
        ("ECKART_REDIS_URL", "http://x", "ECKART_REDIS_URL: "),
        ("ECKART_REDIS_URL", None, "ECKART_REDIS_URL is not set"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_in_a_line(name, value, words):
    environment = (
        os.environ | {"ECKART_REDIS_URL": "redis://127.0.0.1:1/0"} | ({name: value} if value else {})
    )
    if value is None:
        del environment[name]
    if value == "cuda" and torch.cuda.is_available():
        return
    command = [sys.executable, "-m", "worker"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)

    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith(words)
    assert len(done.stderr.splitlines()) == 1


def test_a_sharded_checkpoint_does_not_become_a_single_file(save_sharded, gaussian, tmp_path, refused):
    directory = save_sharded([{"a.weight": gaussian(8, 8)}, {"b.weight": gaussian(8, 8)}])

    assert "is sharded" in refused("compress", directory, tmp_path / "one.safetensors", "--spec", SPEC)


def test_a_calibration_is_given_as_a_file(save, gaussian, tmp_path):
    source = save({"a.weight": gaussian(64, 48)})
    x = gaussian(48, 200) * torch.logspace(0, -2, 48)[:, None]
    grams = save({"a.gram": x @ x.T}, "grams.safetensors")
    done = run(source, tmp_path / "out", "--spec", SPEC, "--calibration", grams)

    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 0 < json.loads(done.stdout)["weighted_error"] < report["totals"]["relative_error"]
    assert [file["name"] for file in report["calibration"]] == ["grams.safetensors"]


@pytest.mark.parametrize(
    ("grams", "spec", "words"),
    [
        ({"b.gram": torch.eye(48)}, SPEC, 'grams.safetensors: The calibration has a Gram matrix for "b"'),
        ({"a.gram": -torch.eye(48)}, SPEC, 'grams.safetensors: The Gram matrix of "a" is not positive'),
        (None, SPEC, "grams.safetensors: This is not safetensors"),
        ({"a.gram": torch.eye(48)}, '{"rank": 4, "calibration": "stored"}', "give its file instead"),
    ],
)
def test_a_calibration_that_does_not_fit_is_an_error_in_one_line(
    save, gaussian, tmp_path, refused, grams, spec, words
):
    source = save({"a.weight": gaussian(64, 48)})
    if grams is None:
        (tmp_path / "grams.safetensors").write_bytes(b"abc")
    else:
        save(grams, "grams.safetensors")
    options = ["--spec", spec, "--calibration", tmp_path / "grams.safetensors"]

    assert words in refused("compress", source, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_plan_is_printed_without_torch(save, gaussian, tmp_path):
    source = save({"a.weight": gaussian(64, 48), "a.bias": gaussian(64)})
    grams = save({"a.gram": torch.eye(48)}, "grams.safetensors")
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    command = [sys.executable, "-m", "worker", "plan", source, "--spec", SPEC, "--calibration", grams]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    (layer,) = plan["layers"]
    assert (plan["checkpoint"], layer["name"], layer["rank"]) == ("model.safetensors", "a", 13)
    assert layer["calibrated"]
    assert plan["totals"]["parameters_before"] == 64 * 48 + 64


@pytest.mark.parametrize(
    ("source", "spec", "words"),
    [
        ("missing.safetensors", SPEC, "missing.safetensors"),
        ("model.safetensors", '{"rank": {"ratio": 2}}', "spec/rank/ratio: "),
        ("model.safetensors", '{"rank": {"budget": 0.01}}', "spec/rank/budget: The selected layers need"),
        ("model.safetensors", '{"rank": 4, "calibration": "stored"}', "give its file instead"),
        ("broken.safetensors", SPEC, "broken.safetensors: This is not safetensors"),
    ],
)
def test_an_error_of_a_plan_is_printed_in_one_line(save, gaussian, tmp_path, refused, source, spec, words):
    save({"a.weight": gaussian(8, 8)})
    (tmp_path / "broken.safetensors").write_bytes(b"abc")

    said = refused("plan", tmp_path / source, "--spec", spec)
    assert words in said
    assert len(said.splitlines()) == 1
