"""scikit-learn's handwritten digits, which are part of that package, as small colour pictures."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

SIDE = 32
WHITE = 16.0
EVERY = 3  # every third picture is for the test


@dataclass(frozen=True)
class Pictures:
    """Inputs [N, …] and their classes [N]."""

    inputs: Tensor
    labels: Tensor


def digits() -> tuple[Pictures, Pictures]:
    """Return the same 1198 pictures for training and 599 for testing each time, [N, 3, 32, 32]."""
    data = load_digits()
    grey = torch.from_numpy(data.images).float().div(WHITE).mul(2).sub(1)[:, None]  # (1797, 1, 8, 8)
    large = functional.interpolate(grey, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    inputs = large.expand(-1, 3, -1, -1).contiguous()  # (1797, 3, 32, 32)
    labels = torch.from_numpy(data.target).long()
    kept = torch.arange(len(labels)) % EVERY == EVERY - 1
    return Pictures(inputs[~kept], labels[~kept]), Pictures(inputs[kept], labels[kept])
