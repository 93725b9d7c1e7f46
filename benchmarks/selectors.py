"""The error and the time of each selector, compared with sketches, which are not offered."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import scipy.linalg
import torch

from benchmarks.options import Options
from benchmarks.table import show
from worker.lowrank import SELECTORS, Decomposition, Selector, cur, cx, relative_error
from worker.lowrank.blas import limit_blas_threads, product
from worker.lowrank.pivoting import lu_pivots, qr_pivots
from worker.lowrank.selectors import select
from worker.lowrank.solvers import solve_for

SEEDS = range(5)
SHAPE = 384, 512
# The rank for each spectrum.
RANKS = {"i^-1/2": 64, "1/i": 64, "exp(-i/10)": 32, "16 large columns": 64}
# The rank of the timed matrices is their side divided by this.
PART = 4
OVERSAMPLING = 10

Choice = Callable[[], list[int]]


def ask(options: Options) -> None:
    """Print the mean error over the optimum by selector, and the seconds that choosing takes."""
    torch.set_num_threads(options.threads)
    rows = [(selector, *(_errors(selector, name) for name in RANKS)) for selector in SELECTORS]
    title = f"Error over the SVD's at the same rank, CX / CUR, {SHAPE[0]} x {SHAPE[1]}, mean of {len(SEEDS)}"
    show(title, ("selector", *(f"{name}, k = {rank}" for name, rank in RANKS.items())), rows)
    for side in (2048, 4096):
        _time(max(256, round(side * options.scale**0.5)), options.rounds)


def _errors(selector: Selector, name: str) -> str:
    rank = RANKS[name]
    ratios = []
    for seed in SEEDS:
        weight = _matrix(name, seed)
        optimum = float(torch.linalg.svdvals(weight)[rank:].norm() / weight.norm())
        found = (method(weight, rank, selector=selector, seed=seed).factors for method in (cx, cur))
        ratios.append([relative_error(weight, factors) / optimum for factors in found])
    by_columns, by_both = np.mean(ratios, axis=0)
    return f"{by_columns:.3f} / {by_both:.3f}"


def _matrix(name: str, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    rows, columns = SHAPE
    if name == "16 large columns":
        plain = rng.standard_normal(SHAPE)
        plain[:, rng.choice(columns, 16, replace=False)] *= 20
        return torch.from_numpy(plain)
    i = np.arange(1, min(SHAPE) + 1)
    values = {"i^-1/2": i**-0.5, "1/i": 1 / i, "exp(-i/10)": np.exp(-i / 10)}[name]
    left, right = (np.linalg.qr(rng.standard_normal((side, len(i))))[0] for side in (rows, columns))
    return torch.from_numpy((left * values) @ right.T)


def _time(side: int, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(side, side, generator=generator) / side**0.5
    rank = side // PART
    with limit_blas_threads():
        begun = time.perf_counter()
        decomposition = solve_for(weight, rank)
        found_s = time.perf_counter() - begun
        tail = decomposition.optimal_error(rank)
        rows = [
            (way, *_timed(choose, rounds), f"{_cx_error(weight, choose()) / tail:.4f}")
            for way, choose in _ways(weight, rank, decomposition, generator)
        ]
    print(f"{side} x {side}, k = {rank}: a decomposition takes {found_s:.2f} s")
    show("Choosing columns", ("way", "median s", "least s", "error over the SVD's"), rows)


def _ways(
    weight: torch.Tensor, rank: int, decomposition: Decomposition, generator: torch.Generator
) -> Iterator[tuple[str, Choice]]:
    basis = decomposition.vectors(weight, rank, axis="columns")

    def sketch() -> torch.Tensor:
        mixed = torch.randn(rank + OVERSAMPLING, weight.shape[0], generator=generator)
        return product(mixed, weight)

    def lapack(matrix: torch.Tensor) -> list[int]:
        order = scipy.linalg.qr(matrix.numpy(), mode="r", pivoting=True, check_finite=False)[1]
        chosen: list[int] = order[:rank].tolist()
        return chosen

    def chosen_by(selector: Selector) -> list[int]:
        return list(
            select(selector, rank, axis="columns", matrix=weight, decomposition=decomposition, seed=0)
        )

    for selector in SELECTORS:
        yield selector, partial(chosen_by, selector)
    yield "pivoted QR of V_k by LAPACK", lambda: lapack(basis.mT)
    yield "pivoted QR of W by LAPACK", lambda: lapack(weight)
    yield "pivoted QR of a sketch of W", lambda: qr_pivots(sketch().mT, rank)
    yield "pivoted LU of a sketch of W", lambda: lu_pivots(sketch().mT)[:rank]


def _timed(choose: Choice, rounds: int) -> tuple[str, str]:
    spent_s = []
    for _ in range(rounds):
        begun = time.perf_counter()
        choose()
        spent_s.append(time.perf_counter() - begun)
    return f"{np.median(spent_s):.3f}", f"{min(spent_s):.3f}"


def _cx_error(weight: torch.Tensor, columns: list[int]) -> float:
    basis = torch.linalg.qr(weight[:, columns]).Q
    return float((weight - basis @ (basis.mT @ weight)).norm() / weight.norm())
