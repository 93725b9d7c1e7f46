"""The seconds of decompositions with statistics: one side in float64, one side, and both sides."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.options import Options
from benchmarks.table import show
from worker.lowrank import FactorRequest, Statistics, SVDMethod, factor
from worker.lowrank.blas import limit_blas_threads
from worker.lowrank.calibrated import _by_eigenvalues
from worker.lowrank.scale import exponent_of, scaled_copy, squared_norm
from worker.lowrank.solvers import Wanted
from worker.lowrank.weighting import Weighting

SHAPES = ((384, 384), (1536, 384), (2048, 2048), (4096, 1024))


def ask(options: Options) -> None:
    """Print the median seconds of each way per shape, and both sides over one."""
    torch.set_num_threads(options.threads)
    rows = []
    for shape in SHAPES:
        m, n = (max(160, round(side * options.scale**0.5)) for side in shape)
        rank = m * n // (2 * (m + n))
        weight, both = _layer(m, n)
        one = Statistics(gram=both.gram)
        in_float64 = _seconds(partial(_in_float64, weight, one, rank), options.rounds)
        seconds = [_seconds(partial(_factor, weight, each, rank), options.rounds) for each in (one, both)]
        ratio = seconds[1] / seconds[0]
        cells = (f"{in_float64:.3f}", *(f"{each:.3f}" for each in seconds), f"{ratio:.2f}")
        rows.append((f"{m} x {n}, k = {rank}", *cells))
    show(
        "Seconds: eigenpairs alone, and whole factorizations with their errors measured",
        ("shape", "one side, eigenpairs in float64", "one side, all", "both sides, all", "both/one"),
        rows,
    )


def _layer(m: int, n: int) -> tuple[torch.Tensor, Statistics]:
    generator = torch.Generator().manual_seed(0)

    def gram(side: int) -> torch.Tensor:
        x = torch.randn(2 * side, side, generator=generator) * torch.linspace(1, 0.2, side)
        return x.mT @ x

    weight = torch.randn(m, n, generator=generator) / n**0.5
    return weight, Statistics(gram=gram(n), grad_gram=gram(m), count=float(2 * n))


def _factor(weight: torch.Tensor, statistics: Statistics, rank: int) -> None:
    request = FactorRequest(
        method=SVDMethod(), rank=rank, max_rank=rank, dtype=torch.float32, statistics=statistics
    )
    factor(weight, request)


@limit_blas_threads()
def _in_float64(weight: torch.Tensor, statistics: Statistics, rank: int) -> None:
    weighting = Weighting.of(statistics, weight.device)
    exponent = exponent_of(weight)
    assert exponent is not None
    taken = weighting.scaled(scaled_copy(weight, exponent, torch.float64))
    _by_eigenvalues(taken, Wanted(rank, True, squared_norm(taken)), weighting=weighting)


def _seconds(run: Callable[[], None], rounds: int) -> float:
    spent = []
    for _ in range(rounds):
        begun = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begun)
    return float(np.median(spent))
