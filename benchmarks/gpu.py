"""What a GPU gains: one matrix by several solvers, and blocks of an 8B model from file to file.

Without a GPU the same runs on the CPU at a small `--scale`, which gives no figures.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import scipy.linalg
import torch
from safetensors.torch import save_file

from benchmarks.loops import Phases, pipeline
from benchmarks.options import Options
from benchmarks.table import show
from schemas.planning.references import References, open_references
from schemas.spec import CompressionSpec
from worker.checkpoint.reader import CheckpointReader
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
# The shapes of Llama 3.1 8B, without the embedding and the head.
WIDTH, KEYS, INNER, BLOCKS = 4096, 1024, 14336, 2
CORRECTED, CORRECTED_RANK = "int4+svd of rank 64", 64
RUNS: dict[str, dict[str, object]] = {
    "svd, half of the parameters": {"method": "svd", "rank": {"ratio": 0.5}},
    "svd, error at most 0.3": {"method": "svd", "rank": {"error": 0.3}},
    "int4": {"method": "int4"},
    CORRECTED: {"method": "int4+svd"},
}
CALIBRATED = ("svd, half of the parameters", "int4")
MOST_ROUNDS = 3
LARGEST_ON_CPU = 0.1
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
    _compress(options, device)
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


@dataclass(frozen=True, slots=True)
class _Run:
    name: str
    phases: Phases
    peak_gib: float


def _compress(options: Options, device: torch.device) -> None:
    source = _write_blocks(options, device)
    nbytes = sum(path.stat().st_size for path in source.parent.glob("*.safetensors"))
    begun = time.perf_counter()
    for path in sorted(source.parent.glob("*.safetensors")):
        with CheckpointReader(path) as reader:
            for tensor in reader.header.tensors:
                reader.read(tensor.name).to(device)
    _wait(device)
    read_s = time.perf_counter() - begun
    print(f"{nbytes / 2**30:.2f} GiB; to read it all and copy it to the device: {read_s:.2f} s")
    runs = [_run(name, fields, source, options, device) for name, fields in RUNS.items()]
    statistics = _write_statistics(options, device)
    runs += [_run(name, RUNS[name], source, options, device, statistics) for name in CALIBRATED]
    header = ("spec", "s", "factor s", "other s of the layers", "output s", "GiB/s", "peak GiB on the device")
    rows = [
        (
            run.name,
            f"{run.phases.total:.2f}",
            f"{run.phases.factor:.2f}",
            f"{run.phases.layers - run.phases.factor:.2f}",
            f"{run.phases.output:.2f}",
            f"{nbytes / 2**30 / run.phases.total:.2f}",
            f"{run.peak_gib:.2f}",
        )
        for run in runs
    ]
    show(f"Blocks of the shapes of Llama 3.1 8B, bfloat16, {nbytes / 2**30:.2f} GiB", header, rows)


def _run(
    name: str,
    fields: dict[str, object],
    source: Path,
    options: Options,
    device: torch.device,
    statistics: Path | None = None,
) -> _Run:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if name == CORRECTED:
        fields = fields | {"rank": math.ceil(CORRECTED_RANK * options.scale)}
    phases = pipeline(
        source,
        options.place / "done",
        CompressionSpec.model_validate(fields),
        threads=options.threads,
        device=device,
        references=open_references(References(statistics, None)),
    )
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    run = _Run(name if statistics is None else f"{name}, calibrated", phases, peak / 2**30)
    print(f"{run.name}: {phases}, peak {run.peak_gib:.2f} GiB")
    return run


def _sides(options: Options) -> tuple[int, int, int, int]:
    """Return the sides at this scale, multiples of a group of integers, and the number of blocks."""
    width, keys, inner = (max(64, round(side * options.scale) // 64 * 64) for side in (WIDTH, KEYS, INNER))
    return width, keys, inner, BLOCKS


def _weights(options: Options) -> Iterator[tuple[int, str, tuple[int, int]]]:
    width, keys, inner, blocks = _sides(options)
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        for name, shape in (
            ("self_attn.q_proj", (width, width)),
            ("self_attn.k_proj", (keys, width)),
            ("self_attn.v_proj", (keys, width)),
            ("self_attn.o_proj", (width, width)),
            ("mlp.gate_proj", (inner, width)),
            ("mlp.up_proj", (inner, width)),
            ("mlp.down_proj", (width, inner)),
        ):
            yield block, f"{prefix}.{name}", shape


def _write_blocks(options: Options, device: torch.device) -> Path:
    """Write a shard for each block, its weights of a spectrum that decays like i^-½; return the index."""
    folder = options.place / "blocks"
    folder.mkdir()
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for seed, (block, name, shape) in enumerate(_weights(options)):
        file = f"model-{block:05d}.safetensors"
        shards.setdefault(file, {})[f"{name}.weight"] = _decaying(shape, device, seed).cpu()
    for file, tensors in shards.items():
        save_file(tensors, folder / file, {"format": "pt"})
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return index


def _decaying(shape: tuple[int, int], device: torch.device, seed: int) -> torch.Tensor:
    p, generator = min(shape), _generator(device, seed)
    left, right = (
        torch.randn(each, generator=generator, device=device) for each in ((shape[0], p), (p, shape[1]))
    )
    sizes = torch.arange(1, p + 1, dtype=torch.float32, device=device).rsqrt()
    weight: torch.Tensor = (left * sizes) @ right * (0.02 / p**0.5)
    return weight.bfloat16()


def _write_statistics(options: Options, device: torch.device) -> Path:
    """Write Gram matrices of the inputs of the first block, whose other blocks stay uncalibrated."""
    tensors = {}
    for seed, (block, name, (_, columns)) in enumerate(_weights(options)):
        if block == 0:
            x = torch.randn(2 * columns, columns, generator=_generator(device, seed), device=device)
            x *= torch.linspace(1, 0.2, columns, device=device)
            tensors[f"{name}.gram"] = (x.mT @ x).cpu()
    path = options.place / "statistics.safetensors"
    save_file(tensors, path)
    return path
