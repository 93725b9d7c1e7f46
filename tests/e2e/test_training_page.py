"""docs/13-training.md: its blocks run, in the order of the page, and the result is what it promises."""

import re
import shlex
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from eckart.cli import main
from eckart.torch import load_compressed

PAGE = Path(__file__).parents[2] / "docs" / "13-training.md"


def test_every_block_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks] == ["python", "sh", "python"]
    for kind, code in blocks:
        if kind == "sh":
            command, *arguments = shlex.split(code)
            assert command == "eckart"
            assert main([*arguments, "--local"]) == 0
        else:
            exec(compile(code, str(PAGE), "exec"), names)
    tuned = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    load_compressed(tuned, "tuned.safetensors")
    assert torch.equal(tuned(names["inputs"]), names["model"](names["inputs"]))
    assert set(load_file("tuned.safetensors")) == {
        f"{layer}.{part}" for layer in "02" for part in ("0.weight", "1.weight", "1.bias")
    }
