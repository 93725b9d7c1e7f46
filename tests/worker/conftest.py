"""Fixtures of the tests of worker/: real checkpoints in tmp_path, written by the reference library."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import compression


@dataclass(frozen=True)
class Result:
    directory: Path
    report: object

    def tensors(self):
        """Load every tensor of every output file."""
        found = {}
        for path in sorted(self.directory.glob("*.safetensors")):
            found |= load_file(path)
        return found


@pytest.fixture
def compress(tmp_path):
    """Compress locally into a new directory."""
    count = iter(range(1000))

    def run(source, **options):
        target = tmp_path / f"out-{next(count)}"
        return Result(target, compression.compress(source, target, **options))

    return run


@pytest.fixture
def save(tmp_path):
    """Save tensors as one file, with metadata."""

    def write(tensors, name="model.safetensors", metadata=None):
        path = tmp_path / name
        save_file(tensors, path, metadata=metadata)
        return path

    return write


@pytest.fixture
def save_sharded(tmp_path):
    """Save shards and their index as the reference tools do; returns the directory."""

    def write(shards, **metadata):
        directory = tmp_path / "sharded"
        directory.mkdir()
        weight_map, total = {}, 0
        for number, tensors in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file(tensors, directory / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
            total += sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total} | metadata, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        return directory

    return write


@pytest.fixture
def gaussian():
    """Return a function that makes seeded Gaussian matrices."""
    generator = torch.Generator().manual_seed(7)

    def make(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=generator).to(dtype)

    return make
