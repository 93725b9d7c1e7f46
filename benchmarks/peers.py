"""Our SVD compared with those of other libraries: seconds, and the error over the optimum."""

import math
import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import scipy.linalg.interpolative
import torch
from sklearn.utils.extmath import randomized_svd

from benchmarks.options import Options
from benchmarks.spectra import SPECTRA, matrix
from benchmarks.table import show
from examples.plot import COLOURS, Axis, Line, chart
from worker.lowrank import svd

SHAPES = ((768, 768), (3072, 768), (2048, 2048), (4096, 1024), (4096, 4096), (11008, 4096))
PARTS = (0.1, 0.25)
# The shapes for which there is a target.
TARGET = ((2048, 2048), (4096, 4096))
OURS, PLAIN = "eckart", "torch.linalg.svd"
# It takes minutes on larger matrices.
INTERPOLATIVE_ELEMENTS = 1_000_000
# A way that takes longer runs only once.
LONG_S = 5.0
CHARTED = (4096, 4096, "power law")
CHART = "benchmarks-peers.svg"
EXCESSES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1)
# The threads of one library keep spinning for a while, which would slow the next one down.
REST_S = 0.2
Factors = tuple[torch.Tensor, torch.Tensor]
Solve = Callable[[torch.Tensor, int], Factors]


def _ours(weight: torch.Tensor, rank: int) -> Factors:
    found = svd(weight, rank)
    return found.left, found.right


def _plain(weight: torch.Tensor, rank: int) -> Factors:
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return u[:, :rank] * s[:rank], vh[:rank]


def _lowrank(weight: torch.Tensor, rank: int) -> Factors:
    u, s, v = torch.svd_lowrank(weight, q=min(rank + 16, *weight.shape), niter=2)
    return u[:, :rank] * s[:rank], v[:, :rank].mT


def _randomized(weight: torch.Tensor, rank: int) -> Factors:
    u, s, vh = randomized_svd(weight.numpy(), rank, random_state=0)
    return torch.from_numpy(u * s), torch.from_numpy(vh)


def _interpolative(weight: torch.Tensor, rank: int) -> Factors:
    u, s, v = scipy.linalg.interpolative.svd(weight.double().numpy(), rank)
    return torch.from_numpy(u * s).float(), torch.from_numpy(v.T.copy()).float()


def _sampled(weight: torch.Tensor, rank: int) -> Factors:
    # Columns drawn by squared norm with replacement, and the fit of all columns to them.
    energies = weight.square().sum(0).double().numpy()
    drawn = np.random.default_rng(0).choice(len(energies), rank, p=energies / energies.sum())
    chosen = weight[:, torch.from_numpy(np.sort(drawn))]
    return chosen, torch.linalg.pinv(chosen) @ weight


WAYS: dict[str, Solve] = {
    OURS: _ours,
    PLAIN: _plain,
    "torch.svd_lowrank": _lowrank,
    "sklearn randomized_svd": _randomized,
    "scipy interpolative": _interpolative,
    "sampled columns": _sampled,
}


def ask(options: Options) -> None:
    """Measure every shape, spectrum and rank; all ways take turns."""
    torch.set_num_threads(options.threads)
    speed: list[float] = []
    charted: dict[str, list[tuple[float, float]]] = {}
    beaten: list[str] = []
    for rows, columns in SHAPES:
        shape = (math.ceil(rows * options.scale), math.ceil(columns * options.scale))
        lines = []
        for spectrum in SPECTRA:
            for rank, found in _cases(spectrum, shape, options.rounds):
                lines += _lines(spectrum, rank, found)
                if (rows, columns) in TARGET and spectrum != "MiniLM":
                    speed.append(found[PLAIN][0] / found[OURS][0])
                if (rows, columns, spectrum) == CHARTED:
                    for name, (spent, excess) in found.items():
                        charted.setdefault(name, []).append((excess, found[PLAIN][0] / spent))
                beaten += _beaten(f"{shape}, {spectrum}, {rank}", found)
        header = ("spectrum, rank", "way", "seconds", "times as fast as torch.linalg.svd", "excess")
        show(f"{shape[0]} x {shape[1]}", header, lines)
    if options.charts:
        (options.charts / CHART).write_text(draw(charted))
    print(f"2048² and 4096², three spectra: {_geometric_mean(speed):.1f} times as fast as {PLAIN}")
    print(f"slower and less accurate than a peer: {'; '.join(beaten) or 'nowhere'}")


def _cases(
    spectrum: str, shape: tuple[int, int], rounds: int
) -> Iterator[tuple[int, dict[str, tuple[float, float]]]]:
    weight, values = matrix(spectrum, *shape)
    for part in PARTS:
        rank = int(part * min(shape))
        best = math.sqrt(float(np.sum(values[rank:] ** 2)))
        yield rank, _measured(weight, rank, best, rounds)


def _measured(weight: torch.Tensor, rank: int, best: float, rounds: int) -> dict[str, tuple[float, float]]:
    """Return median seconds and excess of each way."""
    ways = dict(WAYS)
    if weight.numel() > INTERPOLATIVE_ELEMENTS:
        del ways["scipy interpolative"]
    spent: dict[str, list[float]] = {name: [] for name in ways}
    excess: dict[str, float] = {}
    for at in range(rounds):
        for name, solve in ways.items():
            if at and spent[name][0] > LONG_S:
                continue
            time.sleep(REST_S)
            begun = time.perf_counter()
            left, right = solve(weight, rank)
            spent[name].append(time.perf_counter() - begun)
            if not at:
                excess[name] = _error(weight, left, right) / best - 1
    return {name: (median(spent[name]), excess[name]) for name in ways}


def _error(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> float:
    right = right.double()
    blocks = zip(torch.split(weight, 512), torch.split(left, 512), strict=True)
    return math.sqrt(sum(float((part - rows.double() @ right).square().sum()) for part, rows in blocks))


def _lines(
    spectrum: str, rank: int, found: dict[str, tuple[float, float]]
) -> list[tuple[str, str, str, str, str]]:
    plain_s = found[PLAIN][0]
    return [
        (f"{spectrum}, {rank}", name, f"{spent:.3f}", f"{plain_s / spent:.2f}", f"{excess:.1e}")
        for name, (spent, excess) in found.items()
    ]


def _beaten(case: str, found: dict[str, tuple[float, float]]) -> list[str]:
    spent, excess = found[OURS]
    peers = ("torch.svd_lowrank", "sklearn randomized_svd")
    return [f"{case} ({name})" for name in peers if found[name][0] < spent and found[name][1] < excess]


def draw(ways: dict[str, list[tuple[float, float]]]) -> str:
    """Draw speed against excess; each way is a line between its two ranks."""
    across = Axis("excess over the least error, at ranks n/10 and n/4", 1e-6, 1, EXCESSES, True)
    up = Axis("times as fast as torch.linalg.svd", 0.5, 50, (0.5, 1, 2, 5, 10, 20, 50), True)
    named = zip(ways.items(), COLOURS, strict=False)
    lines = [Line(name, points, colour) for (name, points), colour in named]
    return chart("4096 x 4096, singular values like i^-½", across, up, lines)


def _geometric_mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
