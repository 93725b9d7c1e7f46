"""How the cost grows with n, with k and with the number of layers: seconds and exponents."""

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch

from benchmarks.options import Options
from benchmarks.spectra import matrix
from benchmarks.table import show
from examples.plot import COLOURS, Axis, Line, chart
from worker.lowrank import FactorRequest, SVDMethod, decompose, factor, svd

SIZES = (512, 1024, 2048, 4096)
RANKS = (32, 64, 128, 256, 512)
LAYERS = (1, 2, 4, 8)
LAYER = 1024
MOST_ROUNDS = 3
CHART = "benchmarks-growth.svg"


def ask(options: Options) -> None:
    """Measure all three, on singular values that follow a power law."""
    torch.set_num_threads(options.threads)
    rounds = min(options.rounds, MOST_ROUNDS)
    sizes = [math.ceil(size * options.scale) for size in SIZES]
    weights = {size: matrix("power law", size, size)[0] for size in sizes}
    against_n: dict[str, Callable[[int], object]] = {
        "svd at rank n/10": lambda n: svd(weights[n], max(1, n // 10)),
        "svd at rank n/4": lambda n: svd(weights[n], max(1, n // 4)),
        "whole, for any rank": lambda n: decompose(weights[n], num_vectors=max(1, n // 2)),
        "torch.linalg.svd": lambda n: torch.linalg.svd(weights[n], full_matrices=False),
    }
    spent = {name: _grow(f"n: {name}", sizes, work, rounds) for name, work in against_n.items()}
    if options.charts:
        (options.charts / CHART).write_text(_chart(sizes, spent))
    wide = weights[sizes[2]]
    ranks = [math.ceil(rank * options.scale) for rank in RANKS]
    _grow(f"k, of svd at n = {sizes[2]}", ranks, lambda k: svd(wide, k), rounds)
    layer = matrix("power law", LAYER, LAYER)[0]
    request = FactorRequest(method=SVDMethod(), rank=LAYER // 4, max_rank=LAYER // 2, dtype=torch.float32)

    def layers(count: int) -> None:
        for _ in range(count):
            factor(layer, request)

    _grow(f"layers of {LAYER} x {LAYER}", LAYERS, layers, rounds)


def _chart(sizes: Sequence[int], spent: dict[str, list[float]]) -> str:
    across = Axis("n, of an n x n weight with singular values like i^-½", sizes[0], sizes[-1], sizes, True)
    up = Axis("seconds", 0.001, 100, (0.001, 0.01, 0.1, 1, 10, 100), True)
    named = zip(spent.items(), COLOURS, strict=False)
    lines = [Line(name, list(zip(sizes, values, strict=True)), colour) for (name, values), colour in named]
    return chart("Seconds of a decomposition", across, up, lines)


def _grow(what: str, sizes: Sequence[int], work: Callable[[int], object], rounds: int) -> list[float]:
    spent = [_seconds(work, size, rounds) for size in sizes]
    exponent = np.polyfit(np.log(sizes), np.log(spent), 1)[0]
    rows = [(str(size), f"{seconds:.4f}") for size, seconds in zip(sizes, spent, strict=True)]
    show(f"Seconds against {what}: exponent {exponent:.2f}", ("size", "seconds"), rows)
    return spent


def _seconds(work: Callable[[int], object], size: int, rounds: int) -> float:
    spent = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work(size)
        spent.append(time.perf_counter() - begun)
    return median(spent)
