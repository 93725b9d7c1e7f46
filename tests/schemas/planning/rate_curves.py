"""Layers with choices of several forms: random small ones, and some like those of real weights."""

import random
from collections.abc import Collection, Sequence

import numpy as np
from hypothesis import strategies as st

from schemas.planning.rate_curve import Candidate, RateCurve, make_rate_curve
from schemas.spectrum import squared_tails

SVD, INT8, INT4, INT8_SVD, INT4_SVD = range(5)
QUANTISED = (INT8, INT4)
# Bits of a number, and its error for values of variance 1.
BITS = {INT8: 8, INT4: 4.5, INT8_SVD: 8, INT4_SVD: 4.5}
ROUNDING = {INT8: 1e-4, INT4: 1e-2, INT8_SVD: 1e-4, INT4_SVD: 1e-2}

# The name of a layer, its candidates, and its cost when dense.
Layer = tuple[str, list[Candidate], int]


@st.composite
def candidates(draw: st.DrawFn) -> tuple[list[Candidate], int]:
    """Draw candidates of some forms, and the cost of dense; costs may be equal, and above that of dense."""
    drawn = []
    for form in draw(st.sets(st.integers(0, 5), min_size=1, max_size=3)):
        points = draw(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 100)), min_size=1, max_size=4))
        costs, errors = sorted(cost for cost, _ in points), sorted((e / 7 for _, e in points), reverse=True)
        drawn.append(Candidate(form, range(1, len(points) + 1), costs, errors))
    return drawn, draw(st.integers(1, 40))


@st.composite
def layers(draw: st.DrawFn) -> list[Layer]:
    """Draw some layers."""
    return [(f"layer.{number}", *draw(candidates())) for number in range(draw(st.integers(1, 4)))]


def model(
    seed: int, count: int, sizes: Sequence[int] = (48, 64, 128), forms: Collection[int] = BITS | {SVD: 0}
) -> list[Layer]:
    """Return layers of float32 weights with power-law spectra, costs in bytes."""
    rng = random.Random(seed)
    return [_layer(rng, f"layer.{number}", rng.choices(sizes, k=2), forms) for number in range(count)]


def _layer(rng: random.Random, name: str, shape: Sequence[int], forms: Collection[int]) -> Layer:
    (m, n), weight = shape, 10 ** rng.uniform(-1, 1)
    drawn = []
    for form in sorted(forms):
        ranks = range(1) if form in QUANTISED else range(1, min(m, n) + 1)
        base = m * n * BITS[form] / 8 + 100 if form in BITS else 100
        exponent = rng.uniform(0.3, 1.0) if form == SVD else rng.uniform(0.05, 0.3)
        tails = squared_tails([(at + 1) ** -exponent for at in range(min(m, n))])
        scale = weight * ROUNDING.get(form, 1.0) * rng.uniform(0.5, 2) / tails[0]
        costs = [int(base) + rank * (m + n) * (4 if form == SVD else 1) for rank in ranks]
        drawn.append(
            Candidate(form, ranks, costs, [scale * (tails[rank] + 1e-4 * tails[0]) for rank in ranks])
        )
    return name, drawn, 4 * m * n


def curves_of(drawn: Sequence[Layer], forms: Collection[int] | None = None) -> list[RateCurve]:
    """Return the curves of layers, of all forms or of some."""
    return [
        make_rate_curve(name, [each for each in given if forms is None or each.form in forms], dense_cost)
        for name, given, dense_cost in drawn
    ]


def choices_of(layer: Layer) -> list[tuple[int, float]]:
    """Return cost and error of all choices of a layer, dense included."""
    _, given, dense_cost = layer
    cheaper = [
        (cost, error)
        for each in given
        for cost, error in zip(each.costs, each.errors, strict=True)
        if cost < dense_cost
    ]
    return [*cheaper, (dense_cost, 0.0)]


def least_error(drawn: Sequence[Layer], capacity: int) -> float:
    """Find the smallest error by dynamic programming over every cost."""
    best = np.zeros(capacity + 1)
    for layer in drawn:
        following = np.full(capacity + 1, np.inf)
        for cost, error in choices_of(layer):
            if cost <= capacity:
                following[cost:] = np.minimum(following[cost:], best[: capacity + 1 - cost] + error)
        best = following
    return float(best[capacity])
