"""MiniLM's sentence vectors: the sentences, the layers, and how near a result stays to the original."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from eckart.torch import load_compressed
from examples.minilm import MiniLM, installed, token_ids

HERE = Path(__file__).parent
# The pooler is in the file, but sentence vectors do not use it.
LAYERS = "encoder.*"
UP = "encoder.layer.0.intermediate.dense.weight"


def sentences(name: str) -> list[str]:
    """Read the list `calibration` or `evaluation`; no sentence is in both."""
    return (HERE / f"{name}.txt").read_text("utf-8").splitlines()


def original() -> MiniLM:
    model = MiniLM()
    model.load_state_dict(load_file(installed("model.safetensors")))
    return model.eval()


def weight_bytes(model: MiniLM) -> int:
    """Return the bytes of the weights that the study compresses."""
    linear = [module for module in model.encoder.modules() if isinstance(module, torch.nn.Linear)]
    return sum(module.weight.nbytes for module in linear)


def compressed(folder: Path) -> MiniLM:
    """Load a result, which may have fewer neurons."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
        fewer = {"inner": file.get_slice(UP).get_shape()[0]} if UP in names else {}
    return load_compressed(MiniLM(**fewer), folder).eval()


@torch.inference_mode()
def vectors(model: MiniLM, texts: Sequence[str]) -> Tensor:
    return torch.stack([model(token_ids(text)) for text in texts])  # (sentences, 384), each of length 1


@dataclass(frozen=True)
class Sentences:
    """Sentences with their original vectors; judges results of jobs."""

    texts: Sequence[str]
    before: Tensor

    def judge(self, folder: Path) -> tuple[float, ...]:
        """Return the mean and the least cosine to the original vectors, and the share of same neighbours."""
        after = vectors(compressed(folder), self.texts)
        cosines = (self.before * after).sum(1)  # (sentences,)
        same = (nearest(after) == nearest(self.before)).double().mean().item()
        return cosines.mean().item(), cosines.min().item(), same


def nearest(found: Tensor) -> Tensor:
    """Return the index of each vector's nearest other vector."""
    return (found @ found.T).fill_diagonal_(-1).argmax(1)
