"""The language model's layers, and the perplexity of a result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from eckart.torch import load_compressed
from examples.language.network import Language
from examples.language.training import perplexity

NAME = "language.safetensors"
LAYERS = "layers.*"
UP = "layers.0.mlp.up_proj.weight"


def weight_bytes(network: Language) -> int:
    """Return the bytes of the weights that the study compresses."""
    return sum(module.weight.nbytes for module in network.layers.modules() if isinstance(module, nn.Linear))


@dataclass(frozen=True)
class HeldOut:
    """Windows of text that was not used before; judges results of jobs."""

    windows: Tensor
    build: Callable[..., Language] = Language

    def judge(self, folder: Path) -> tuple[float, ...]:
        """Return the perplexity of each next byte."""
        return (perplexity(self.compressed(folder), self.windows),)

    def compressed(self, folder: Path) -> Language:
        """Load a result, which may have fewer neurons."""
        with safe_open(folder / NAME, "pt") as file:
            names = set(file.keys())
            fewer = {"neurons": file.get_slice(UP).get_shape()[0]} if UP in names else {}
        return load_compressed(self.build(**fewer), folder).eval()
