"""What statistics cost: factors by one and by two Gram matrices, and rounding with feedback."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from benchmarks.options import Options
from benchmarks.table import show
from worker.lowrank import FactorRequest, Grid, Statistics, SVDMethod, factor, round_weight, svd

SHAPES = ((384, 384), (1536, 384), (384, 1536), (2048, 2048), (4096, 1024), (1024, 4096))
ROUNDED = ((1024, 2752), (4096, 11008))
GRID = Grid(bits=4, group=64, scale_dtype=torch.float32)


def ask(options: Options) -> None:
    """Print the median CPU seconds of each way per shape, and their ratios."""
    torch.set_num_threads(options.threads)
    rows: list[tuple[str, ...]] = []
    for m, n in (_scaled(shape, options) for shape in SHAPES):
        rank = m * n // (2 * (m + n))
        weight, both = _layer(m, n)
        known = (None, Statistics(gram=both.gram), both)
        ways: list[Callable[[], object]] = [partial(_factor, weight, each, rank) for each in known]
        plain, one, two = _seconds(ways, options.rounds)
        seconds = (f"{each:.3f}" for each in (plain, one, two))
        rows.append((f"{m} x {n}, k = {rank}", *seconds, f"{one / plain:.2f}", f"{two / one:.2f}"))
    head: tuple[str, ...] = ("shape", "plain", "one side", "both sides", "one/plain", "both/one")
    show("CPU seconds of whole factorizations with their errors measured", head, rows)
    rows = []
    for m, n in (_scaled(shape, options) for shape in ROUNDED):
        weight, statistics = _layer(m, n, outputs=False)
        ways = [partial(round_weight, weight, GRID, statistics), partial(svd, weight, min(m, n) // 4)]
        rounded, plain = _seconds(ways, options.rounds)
        rows.append((f"{m} x {n}", f"{rounded:.2f}", f"{plain:.2f}", f"{rounded / plain:.2f}"))
    head = ("shape", "int4 with feedback", "svd at a quarter of full rank", "int4/svd")
    show("CPU seconds of rounding with a Gram matrix", head, rows)


def _scaled(shape: tuple[int, int], options: Options) -> tuple[int, int]:
    m, n = (max(192, round(side * options.scale**0.5) // 64 * 64) for side in shape)
    return m, n


def _layer(m: int, n: int, *, outputs: bool = True) -> tuple[torch.Tensor, Statistics]:
    generator = torch.Generator().manual_seed(0)

    def gram(side: int) -> torch.Tensor:
        x = torch.randn(2 * side, side, generator=generator) * torch.linspace(1, 0.2, side)
        return x.mT @ x

    weight = torch.randn(m, n, generator=generator) / n**0.5
    return weight, Statistics(
        gram=gram(n), grad_gram=gram(m) if outputs else None, count=float(2 * n) if outputs else None
    )


def _factor(weight: torch.Tensor, statistics: Statistics | None, rank: int) -> None:
    request = FactorRequest(
        method=SVDMethod(), rank=rank, max_rank=rank, dtype=torch.float32, statistics=statistics
    )
    factor(weight, request)


def _seconds(ways: list[Callable[[], object]], rounds: int) -> list[float]:
    """Return the median CPU seconds of each way, which take turns."""
    spent: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, times in zip(ways, spent, strict=True):
            begun = time.process_time()
            way()
            times.append(time.process_time() - begun)
    return [median(times) for times in spent]
