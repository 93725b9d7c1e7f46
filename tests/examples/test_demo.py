"""The examples run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_demo_compresses_a_real_model_and_loads_it_back(tmp_path):
    """Also where an earlier run has left its result."""
    result = tmp_path / "all-minilm-l6-v2-svd"
    result.mkdir()
    (result / "model.safetensors").write_bytes(b"older")
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "37 factored" in done.stdout
    assert "Loaded back, strictly; for example LowRankLinear(" in done.stdout
    assert sorted(path.name for path in result.iterdir()) == ["model.safetensors", "report.json"]
    assert list((tmp_path / "data" / "run").glob("*.pid")) == []
