"""The jobs of the kill matrix: small checkpoints of several layers, and specs whose results are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from safetensors.numpy import save

LAYERS = 16
SHAPE = (224, 160)
CHECKPOINTS = 3
SPECS: tuple[dict[str, object], ...] = (
    {"method": "svd", "rank": {"ratio": 0.3}},
    {"method": "cur", "rank": {"ratio": 0.4}},
    {"method": "svd", "rank": {"energy": 0.6}},
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A checkpoint and a spec; `sha256` is of the result of an undisturbed run."""

    checkpoint: str
    content: bytes
    spec: dict[str, object]
    sha256: str = ""


def make_samples() -> list[Sample]:
    """Return one sample for each checkpoint."""
    return [
        Sample(f"chaos-{number}", make_content(number), SPECS[number % len(SPECS)])
        for number in range(CHECKPOINTS)
    ]


def make_content(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    weights = {f"l{i:02d}.weight": random.standard_normal(SHAPE, dtype=np.float32) for i in range(LAYERS)}
    return save(weights)
