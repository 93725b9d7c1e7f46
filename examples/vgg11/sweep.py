"""The sweep: the specs for each compression factor."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from examples.vgg11.network import VGG11

FACTORS = (2, 5, 10, 20, 29, 42, 43, 46, 47, 53, 75, 100, 150, 200, 225, 300)
# Neighbouring factors, between which the accuracy of sampled columns jumps.
NEIGHBOURS = (42, 43, 46, 47)
SEEDS = (0, 1, 2)
METHODS = ("svd", "cx", "cur")
FACTORED = ("classifier.0", "classifier.3")
KEPT = "classifier.6"


@dataclass(frozen=True)
class Point:
    """One job: a method, a compression factor, and the selector of columns with its seed."""

    method: str
    factor: int
    selector: str = "qdeim"
    seed: int = 0

    def rank(self, shape: tuple[int, int]) -> int:
        """Return the rank whose two factors hold about 1/factor of the weight's parameters."""
        rows, columns = shape
        exact = Fraction(rows * columns, (rows + columns) * self.factor)
        return math.ceil(exact) if self.method == "svd" else round(exact)

    def ranks(self, network: VGG11) -> dict[str, int]:
        """Return the rank of each factored layer."""
        return {name: self.rank(_shape(network, name)) for name in FACTORED}

    def spec(self, network: VGG11) -> dict[str, Any]:
        """Return the spec. Every method stores two factors, so that all cost the same."""
        ranks = self.ranks(network).items()
        return {
            "method": self.method,
            "include": ["classifier.*"],
            # At a rank of the number of classes factors save nothing, so the last layer stays dense.
            "rank": _shape(network, KEPT)[0],
            "overrides": [{"match": name, "rank": rank} for name, rank in ranks],
            "selector": self.selector,
            "seed": self.seed,
            "cur": {"storage": "two"},
        }

    def parameters(self, network: VGG11) -> int:
        """Return how many parameters the classifier will have, biases included."""
        factored = sum(rank * sum(_shape(network, name)) for name, rank in self.ranks(network).items())
        biases = sum(_shape(network, name)[0] for name in (*FACTORED, KEPT))
        return factored + math.prod(_shape(network, KEPT)) + biases


def sweep() -> Iterator[Point]:
    """Yield every method at every factor."""
    for factor in FACTORS:
        for method in METHODS:
            yield Point(method, factor)


def neighbours() -> Iterator[Point]:
    """Yield neighbouring factors with sampled columns, to show how much the accuracy varies."""
    for seed in SEEDS:
        for factor in NEIGHBOURS:
            yield Point("cx", factor, "linear_time", seed)


def _shape(network: VGG11, name: str) -> tuple[int, int]:
    rows, columns = network.get_parameter(f"{name}.weight").shape
    return rows, columns
