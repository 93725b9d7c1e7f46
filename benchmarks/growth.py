"""How the cost grows: seconds against n, against k and against layers, and the exponents."""

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch

from benchmarks.options import Options
from benchmarks.spectra import matrix
from benchmarks.table import show
from worker.lowrank import FactorRequest, decompose, factor, svd

SIZES = (512, 1024, 2048, 4096)
RANKS = (32, 64, 128, 256, 512)
LAYERS = (1, 2, 4, 8)
LAYER = 1024
MOST_ROUNDS = 3


def ask(options: Options) -> None:
    """Take each of the three, on a power law."""
    torch.set_num_threads(options.threads)
    rounds = min(options.rounds, MOST_ROUNDS)
    sizes = [math.ceil(size * options.scale) for size in SIZES]
    weights = {size: matrix("power law", size, size)[0] for size in sizes}
    _grow("n, of svd at rank n/10", sizes, lambda n: svd(weights[n], max(1, n // 10)), rounds)
    _grow(
        "n, of a whole decomposition", sizes, lambda n: decompose(weights[n], extent=max(1, n // 2)), rounds
    )
    wide = weights[sizes[2]]
    ranks = [rank for rank in RANKS if rank <= sizes[2] // 4]
    _grow(f"k, of svd at n = {sizes[2]}", ranks, lambda k: svd(wide, k), rounds)
    layer = matrix("power law", LAYER, LAYER)[0]
    request = FactorRequest(method="svd", rank=LAYER // 4, max_rank=LAYER // 2, dtype=torch.float32)

    def layers(count: int) -> None:
        for _ in range(count):
            factor(layer, request)

    _grow(f"layers of {LAYER} x {LAYER}", LAYERS, layers, rounds)


def _grow(what: str, sizes: Sequence[int], work: Callable[[int], object], rounds: int) -> None:
    spent = [_seconds(work, size, rounds) for size in sizes]
    exponent = np.polyfit(np.log(sizes), np.log(spent), 1)[0]
    rows = [(str(size), f"{seconds:.4f}") for size, seconds in zip(sizes, spent, strict=True)]
    show(f"Seconds against {what}: exponent {exponent:.2f}", ("size", "seconds"), rows)


def _seconds(work: Callable[[int], object], size: int, rounds: int) -> float:
    spent = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work(size)
        spent.append(time.perf_counter() - begun)
    return median(spent)
