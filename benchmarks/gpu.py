"""What a GPU gains: one matrix by several solvers, and blocks of an 8B model from file to file.

Without a GPU the same runs on the CPU at a small `--scale`, which gives no figures.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import TypeVar

import numpy as np
import scipy.linalg
import torch

from benchmarks.gpu_model import LARGEST_ON_CPU, compress_blocks
from benchmarks.options import Options
from benchmarks.table import show
from worker.device import choose_device
from worker.lowrank import svd
from worker.lowrank.lapack import leading_eigenpairs

SHAPES = ((1024, 1024), (2048, 2048), (4096, 4096), (11008, 4096), (14336, 4096))
PARTS = (0.1, 0.25)
# Sides of the square matrices whose solvers are compared, and from where the slow ones are left out.
SIDES, LARGEST_SLOW = (512, 1024, 2048, 4096), 2048
SPECTRA: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "exponential": lambda i: torch.exp(-10 * i / len(i)),
    "power law": lambda i: (i + 1) ** -0.5,
    "Gaussian": None,
}
MOST_ROUNDS = 3
# What takes longer runs once: kernels are loaded in a small part of that.
LONG_S = 3.0
Found = TypeVar("Found")
Factors = tuple[torch.Tensor, torch.Tensor]
Solve = Callable[[torch.Tensor, int], Factors]


def ask(options: Options) -> None:
    """Print the times of whole checkpoints, then our SVD beside torch's, then the solvers behind them."""
    torch.set_num_threads(options.threads)
    device = choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "none: on the CPU"
    print(f"gpu       {name}")
    if device.type == "cpu" and options.scale > LARGEST_ON_CPU:
        print(f"this would take hours; give --scale {LARGEST_ON_CPU} or less")
        return
    compress_blocks(options, device)
    _compare_svd(options, device)
    _compare_solvers(options, device)


def _timed(run: Callable[[], Found], device: torch.device, rounds: int) -> tuple[float, Found]:
    """Return the median seconds after a first run, which loads kernels and is not counted; and the result."""
    spent = []
    for _ in range(rounds + 1):
        _wait(device)
        begun = time.perf_counter()
        found = run()
        _wait(device)
        spent.append(time.perf_counter() - begun)
        if spent[-1] > LONG_S:
            return spent[-1], found
    return median(spent[1:]), found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _compare_solvers(options: Options, device: torch.device) -> None:
    """Time what the cascade and the fits of columns are made of."""
    rows = []
    for side in (max(32, round(side * options.scale)) for side in SIDES):
        square = torch.randn(side, side, generator=_generator(device), device=device)
        gram = square.mT @ square
        wide, wide_gram = square.double(), gram.double()
        ways: dict[str, Callable[[], object]] = {
            "product, float32": partial(torch.matmul, square, square),
            "product, float64": partial(torch.matmul, wide, wide),
            "eigh, float32": partial(torch.linalg.eigh, gram),
            "eigh, float64": partial(torch.linalg.eigh, wide_gram),
            "eigh, float32, on the CPU": partial(leading_eigenpairs, gram.cpu(), side, all_values=True),
            "qr, float64": partial(torch.linalg.qr, wide),
        }
        if side <= LARGEST_SLOW:
            for driver in ("gesvdj", "gesvd", "gesvda") if device.type == "cuda" else (None,):
                ways[f"svd, float64, {driver}"] = partial(
                    torch.linalg.svd, wide, full_matrices=False, driver=driver
                )
            ways["svd, float64, gesdd on the CPU"] = partial(
                scipy.linalg.svd, wide.cpu().numpy(), full_matrices=False, check_finite=False
            )
        spent = {name: _timed(way, device, 1)[0] for name, way in ways.items()}
        rows += [(f"{side} x {side}, {name}", f"{value:.4f}") for name, value in spent.items()]
        print(f"{side} x {side}: " + ", ".join(f"{name} {value:.4f}" for name, value in spent.items()))
    show("Solvers", ("matrix and solver", "seconds"), rows)


def _generator(device: torch.device, seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _matrix(spectrum: str, shape: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a float32 matrix and its singular values in float64, descending."""
    make, p = SPECTRA[spectrum], min(shape)
    if make is None:
        weight = torch.randn(shape, generator=_generator(device), device=device)
        tall = (weight if shape[0] >= shape[1] else weight.mT).double()
        return weight, torch.linalg.eigvalsh(tall.mT @ tall).clamp_min(0).sqrt().flip(0)
    values = make(torch.arange(p, dtype=torch.float64, device=device))
    left, right = (
        torch.linalg.qr(
            torch.randn(side, p, generator=_generator(device, seed), device=device, dtype=torch.float64)
        ).Q
        for seed, side in enumerate(shape)
    )
    return ((left * values) @ right.mT).float(), values


def _ours(weight: torch.Tensor, rank: int, *, solver: str = "auto") -> Factors:
    found = svd(weight, rank, solver=solver)
    return found.left, found.right


def _plain(weight: torch.Tensor) -> torch.Tensor:
    values: torch.Tensor = torch.linalg.svd(weight, full_matrices=False).S
    return values


def _lowrank(weight: torch.Tensor, rank: int) -> Factors:
    u, s, v = torch.svd_lowrank(weight, q=min(rank + 16, *weight.shape), niter=2)
    return u[:, :rank] * s[:rank], v[:, :rank].mT


OURS, PLAIN = "eckart", "torch.linalg.svd"
WAYS: dict[str, Solve] = {
    OURS: _ours,
    f"{OURS} without a Krylov space": partial(_ours, solver="gram"),
    "torch.svd_lowrank": _lowrank,
}


def _compare_svd(options: Options, device: torch.device) -> None:
    ratios = []
    for at_full in SHAPES:
        shape = (math.ceil(at_full[0] * options.scale), math.ceil(at_full[1] * options.scale))
        rows = []
        # A whole decomposition takes about as long whatever the matrix and the rank.
        plain_s, _ = _timed(partial(_plain, _matrix("power law", shape, device)[0]), device, 1)
        print(f"{shape[0]} x {shape[1]}: {PLAIN} {plain_s:.3f}")
        for spectrum in SPECTRA:
            for rank, found in _cases(spectrum, shape, device, min(options.rounds, MOST_ROUNDS)):
                ratios.append(plain_s / found[OURS][0])
                rows += [
                    (f"{spectrum}, {rank}", name, f"{spent:.4f}", f"{plain_s / spent:.2f}", f"{excess:.1e}")
                    for name, (spent, excess) in found.items()
                ]
                print(*rows[-len(found) :], sep="\n")
        header = ("spectrum, rank", "way", "seconds", f"times as fast as {PLAIN}", "excess")
        show(f"{shape[0]} x {shape[1]}, {PLAIN} {plain_s:.3f} s", header, rows)
    print(f"all: {math.exp(float(np.mean(np.log(ratios)))):.1f} times as fast as {PLAIN} (geometric mean)")


def _cases(
    spectrum: str, shape: tuple[int, int], device: torch.device, rounds: int
) -> Iterator[tuple[int, dict[str, tuple[float, float]]]]:
    """Yield the seconds of each way at each rank, and by how much its error is above the best possible."""
    weight, values = _matrix(spectrum, shape, device)
    for part in PARTS:
        rank = int(part * min(shape))
        best = float(values[rank:].norm())
        found = {}
        for name, solve in WAYS.items():
            spent, (left, right) = _timed(partial(solve, weight, rank), device, rounds)
            found[name] = spent, _error(weight, left, right) / best - 1
        yield rank, found


def _error(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> float:
    return float((weight.double() - left.double() @ right.double()).norm())
