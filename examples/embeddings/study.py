"""Upload one encoder, compress it by many jobs, and compare the sentence vectors with the original ones."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from eckart import Client
from eckart.torch import load_compressed
from examples.minilm import INNER, WIDTH, MiniLM, installed, token_ids

HERE = Path(__file__).parent
KEPT = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# The pooler is in the file, but sentence vectors do not use it.
LAYERS = "encoder.*"


# The shape of each kind of layer, or of its transpose.
SHAPES = {
    "*.attention.*": (WIDTH, WIDTH),
    "*.intermediate.dense": (INNER, WIDTH),
    "*.output.dense": (WIDTH, INNER),
}
FLOOR = 0.75


@dataclass(frozen=True)
class Rule:
    """A rule that gives layers their ranks; if calibrated, it minimizes the errors of their outputs."""

    name: str
    kind: str
    calibrated: bool = False
    floor: bool = False

    def spec(self, kept: float, calibration: str) -> dict[str, Any]:
        """Return the spec for a share of the parameters; a floor is three quarters of the uniform rank."""
        spec: dict[str, Any] = {"method": "svd", "include": [LAYERS], "rank": {self.kind: kept}}
        if self.calibrated:
            spec["calibration"] = calibration
        if self.floor:
            spec["overrides"] = [
                {"match": match, "min_rank": int(FLOOR * int(kept * rows * columns / (rows + columns)))}
                for match, (rows, columns) in SHAPES.items()
            ]
        return spec


RULES = (
    Rule("uniform ratio", "ratio"),
    Rule("budget", "budget"),
    Rule("calibrated ratio", "ratio", calibrated=True),
    Rule("calibrated budget", "budget", calibrated=True),
    Rule("calibrated budget, floor", "budget", calibrated=True, floor=True),
)


@dataclass(frozen=True)
class Measured:
    """Cosines between the vectors of a sentence before and after, and the share of parameters kept."""

    rule: str
    asked: float
    kept: float
    relative_error: float
    mean: float
    least: float
    same_nearest: float


def sentences(name: str) -> list[str]:
    """Read the list `calibration` or `evaluation`; no sentence is in both."""
    return (HERE / f"{name}.txt").read_text("utf-8").splitlines()


def original() -> MiniLM:
    model = MiniLM()
    model.load_state_dict(load_file(installed("model.safetensors")))
    return model.eval()


@torch.inference_mode()
def vectors(model: MiniLM, texts: Sequence[str]) -> Tensor:
    return torch.stack([model(token_ids(text)) for text in texts])  # (sentences, 384), each of length 1


@dataclass(frozen=True)
class Study:
    """An uploaded encoder with its calibration, the sentences to compare, and their original vectors."""

    client: Client
    checkpoint: str
    calibration: str
    texts: Sequence[str]
    before: Tensor
    place: Path

    def measure(self, rules: Sequence[Rule], shares: Sequence[float]) -> Iterator[Measured]:
        """Run a job for each rule and share, load its result into stock modules and compare the vectors."""
        for kept in shares:
            for rule in rules:
                yield self._measured(rule, kept)

    def _measured(self, rule: Rule, kept: float) -> Measured:
        job = self.client.compress(self.checkpoint, rule.spec(kept, self.calibration))
        report = self.client.report(job.id)
        shutil.rmtree(self.place, ignore_errors=True)
        self.client.download(job.id, self.place)
        self.client.delete(job.id)
        after = vectors(load_compressed(MiniLM(), self.place).eval(), self.texts)
        cosines = (self.before * after).sum(1)  # (sentences,)
        layers = report.layers
        return Measured(
            rule=rule.name,
            asked=kept,
            kept=sum(x.parameters_after for x in layers) / sum(x.parameters_before for x in layers),
            relative_error=report.totals.relative_error,
            mean=cosines.mean().item(),
            least=cosines.min().item(),
            same_nearest=(nearest(after) == nearest(self.before)).double().mean().item(),
        )


def nearest(found: Tensor) -> Tensor:
    """Return the index of each vector's nearest other vector."""
    return (found @ found.T).fill_diagonal_(-1).argmax(1)
