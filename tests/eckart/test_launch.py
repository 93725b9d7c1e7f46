"""The bundled server as child processes (eckart/launch.py), from a source checkout."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eckart import InputError, launch
from eckart.cli import main
from tests.eckart.terminal import stderr_on_a_terminal

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    save_file({"a.weight": torch.randn(64, 48, generator=generator)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_local_run_shows_the_tables(model, capfd):
    assert main(["plan", "model.safetensors", "--rank", "4", "--local"]) == 0
    assert main(["compress", "model.safetensors", "--rank", "4", "--local"]) == 0

    out, err = capfd.readouterr()
    assert out.startswith("plan for model.safetensors\n")
    assert "\nlocal work: svd at rank 4" in out
    assert out.endswith("\nmodel-compressed/model.safetensors\nmodel-compressed/report.json\n")
    assert "100%" in err


def test_a_local_run_on_a_terminal_shows_bars_and_what_cannot_be_done(model, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with stderr_on_a_terminal(monkeypatch) as shown:
        assert main(["compress", "model.safetensors", "--rank", "4", "--local"]) == 0
        assert main(["plan", "model.safetensors", "--rank", "0", "--local"]) == 1

    text = "".join(shown)
    assert [
        word for word in ("compress writing", "━", "1/1", "100%", "spec/rank: ") if word not in text
    ] == []
    assert "% 1/1 writing" not in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--rank 0", "spec/rank: "),
        ("--budget 0.0001", "spec/rank/budget: The selected layers need "),
        ("--budget-bytes 8", "spec/rank/budget_bytes: The output has "),
        ("--rank 2 --align 10000", "spec/align: No layer can be factored."),
        ("--rank 2 --calibration model.safetensors", "model.safetensors: The calibration has no tensor"),
        ("--rank 2 --base missing.safetensors", "[Errno 2] "),
        ("--rank 2 --base model.safetensors --layout factored", "spec/layout: With a base, give "),
    ],
)
def test_the_worker_says_what_cannot_be_done(model, capfd, options, said):
    assert main(["plan", "model.safetensors", *options.split(), "--local"]) == 1

    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith(said)


def test_a_spec_may_be_longer_than_an_argument_of_a_command(model, capfd):
    patterns = [argument for number in range(400) for argument in ("--exclude", f"{number:0>1000}")]

    assert main(["plan", "model.safetensors", "--rank", "4", "--local", *patterns]) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_worker_too(model, number, status):
    generator = torch.Generator().manual_seed(0)
    save_file(
        {f"{i}.weight": torch.randn(1024, 1024, generator=generator) for i in range(8)}, "big.safetensors"
    )
    command = [sys.executable, "-m", "eckart", "compress", "big.safetensors", "--rank", "400", "--local"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ECKART_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        first = process.stderr.readline()  # the worker's: it is at work
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)

    assert "0/8" in first or "1/8" in first
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert len(children) == 1
    deadline = time.monotonic() + 10
    while Path(f"/proc/{children[0]}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("option", ["--host", "--data"])
def test_an_option_of_serve_without_a_value_is_refused(option, capsys):
    """As where the shell's variable is not set: the data would land in the current folder."""
    assert main(["serve", option, ""]) == 1
    assert f"{option} is empty" in capsys.readouterr().err


def test_the_options_of_serve_win_over_the_environment(tmp_path):
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "eckart", "serve", "--host", "127.0.0.2", "--port", port]
        run = subprocess.run(
            [*command, "--data", "given"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "ECKART_HOST": "::1", "ECKART_DATA_DIR": "other"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert run.returncode == 1
    assert f"cannot listen on 127.0.0.2:{port}" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_what_an_extra_needs_comes_from_the_packages_own_metadata():
    needed = set(launch._needed(("service", "worker")))

    assert {"celery", "fastapi", "redis", "torch", "scipy", "pydantic_settings"} <= needed
    assert needed.isdisjoint({"pytest", "sklearn", "httpx"})


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "celery", None)

    with pytest.raises(InputError, match=r"\(celery missing\): pip install 'eckart\[server\]'"):
        launch.serve({})
