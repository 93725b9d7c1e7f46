"""VGG-11 in stock torch modules, with torchvision's names."""

from itertools import pairwise

import torch
from torch import Tensor, nn

# Output channels of the convolutions. A pool after each group halves the picture.
GROUPS = ((64,), (128,), (256, 256), (512, 512), (512, 512))
POOLED = 7


class VGG11(nn.Module):
    """Maps pictures [N, 3, H, W] to scores [N, classes] (Simonyan and Zisserman, 2015, configuration A).

    A picture of 32 x 32 is 1 x 1 after five halvings, and the pool repeats that to 7 x 7. So the classifier's
    25088 inputs are 512 numbers, each repeated 49 times.
    """

    def __init__(self, *, classes: int = 10, hidden: int = 4096, thinner: int = 1) -> None:
        """Build the network. `thinner` divides the number of channels, for fast tests."""
        super().__init__()
        groups = [[width // thinner for width in group] for group in GROUPS]
        layers: list[nn.Module] = []
        seen = 3
        for group in groups:
            for inputs, outputs in pairwise([seen, *group]):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool2d(2))
            seen = group[-1]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((POOLED, POOLED))
        self.classifier = nn.Sequential(
            nn.Linear(seen * POOLED**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        return self.classify(self.features(pictures))

    def classify(self, maps: Tensor) -> Tensor:
        """Return the scores for the output of the convolutions."""
        scores: Tensor = self.classifier(torch.flatten(self.avgpool(maps), 1))  # (N, 25088) -> (N, classes)
        return scores

    def start(self, seed: int) -> None:
        """Draw the initial weights."""
        torch.manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                # A fifth of torchvision's. So few pictures change these weights little, and their random
                # start would be most of what there is to compress.
                nn.init.normal_(module.weight, 0, 0.002)
            else:
                continue
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def parameters(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
