"""Checkpoints of the shapes of Llama 3.1 8B on a GPU, from file to file: two blocks, or all of it."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.loops import Phases, pipeline
from benchmarks.options import Options
from benchmarks.table import show
from schemas.planning.references import References, open_references
from schemas.spec import CompressionSpec
from worker.checkpoint.reader import CheckpointReader
from worker.device import choose_device

WIDTH, KEYS, INNER, WORDS = 4096, 1024, 14336, 128_256
ENDS = ("model.embed_tokens.weight", "lm_head.weight")
FEW_BLOCKS, ALL_BLOCKS = 2, 32
CORRECTED, CORRECTED_RANK = "int4+svd of rank 64", 64
HALF = "svd, half of the parameters"
RUNS: dict[str, dict[str, object]] = {
    HALF: {"method": "svd", "rank": {"ratio": 0.5}},
    "svd, error at most 0.3": {"method": "svd", "rank": {"error": 0.3}},
    "int4": {"method": "int4"},
    CORRECTED: {"method": "int4+svd"},
}
CALIBRATED = (HALF, "int4")
WHOLE = (HALF, "int4")
LARGEST_ON_CPU = 0.1
HEADER = ("spec", "s", "factor s", "other s of the layers", "output s", "GiB/s", "peak GiB on the device")


def ask(options: Options) -> None:
    """Compress a whole model with embedding and head, all of it from file to file."""
    torch.set_num_threads(options.threads)
    device = choose_device("auto")
    if device.type == "cpu" and options.scale > LARGEST_ON_CPU:
        print(f"this would take hours; give --scale {LARGEST_ON_CPU} or less")
        return
    blocks = ALL_BLOCKS if device.type == "cuda" else FEW_BLOCKS
    source = _write_model(options, device, blocks, around=True)
    nbytes = _read_all(source, device)
    runs = [_run(name, RUNS[name], source, options, device) for name in WHOLE]
    _show(f"All {blocks} blocks, embedding and head", runs, nbytes)


def compress_blocks(options: Options, device: torch.device) -> None:
    """Compress two blocks by each spec, and with statistics of the first."""
    source = _write_model(options, device, FEW_BLOCKS, around=False)
    nbytes = _read_all(source, device)
    runs = [_run(name, fields, source, options, device) for name, fields in RUNS.items()]
    statistics = _write_statistics(options, device)
    runs += [_run(name, RUNS[name], source, options, device, statistics) for name in CALIBRATED]
    _show("Two blocks", runs, nbytes)


@dataclass(frozen=True, slots=True)
class _Run:
    name: str
    phases: Phases
    peak_gib: float


def _show(what: str, runs: list[_Run], nbytes: int) -> None:
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
    show(f"{what} of the shapes of Llama 3.1 8B, bfloat16, {nbytes / 2**30:.2f} GiB", HEADER, rows)


def _read_all(source: Path, device: torch.device) -> int:
    """Read all tensors and copy them to the device; print how long it took and return their bytes."""
    begun, nbytes = time.perf_counter(), 0
    for path in sorted(source.parent.glob("*.safetensors")):
        nbytes += path.stat().st_size
        with CheckpointReader(path) as reader:
            for tensor in reader.header.tensors:
                reader.read(tensor.name).to(device)
    _wait(device)
    print(f"{nbytes / 2**30:.2f} GiB; read and copied to the device in {time.perf_counter() - begun:.2f} s")
    return nbytes


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def _sides(options: Options) -> tuple[int, int, int]:
    """Return the sides at this scale, multiples of a group of integers."""
    width, keys, inner = (max(64, round(side * options.scale) // 64 * 64) for side in (WIDTH, KEYS, INNER))
    return width, keys, inner


def _weights(options: Options, block: int) -> Iterator[tuple[str, tuple[int, int]]]:
    width, keys, inner = _sides(options)
    for name, shape in (
        ("self_attn.q_proj", (width, width)),
        ("self_attn.k_proj", (keys, width)),
        ("self_attn.v_proj", (keys, width)),
        ("self_attn.o_proj", (width, width)),
        ("mlp.gate_proj", (inner, width)),
        ("mlp.up_proj", (inner, width)),
        ("mlp.down_proj", (width, inner)),
    ):
        yield f"model.layers.{block}.{name}", shape


def _write_model(options: Options, device: torch.device, blocks: int, *, around: bool) -> Path:
    """Write a shard for each block, its weights of a spectrum that decays like i^-½; return the index.

    With `around`, the embedding and the head have a shard of their own.
    """
    folder = options.place / "model"
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for block in range(blocks):
        tensors = {
            f"{name}.weight": _decaying(shape, device, 7 * block + seed).cpu()
            for seed, (name, shape) in enumerate(_weights(options, block))
        }
        weight_map |= _save(tensors, folder / f"model-{block:05d}.safetensors")
    if around:
        shape = (max(64, round(WORDS * options.scale)), _sides(options)[0])
        ends = {name: _decaying(shape, device, seed).cpu() for seed, name in enumerate(ENDS)}
        weight_map |= _save(ends, folder / "model-ends.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def _save(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, str]:
    save_file(tensors, path, {"format": "pt"})
    return dict.fromkeys(tensors, path.name)


def _decaying(shape: tuple[int, int], device: torch.device, seed: int) -> torch.Tensor:
    p, generator = min(shape), torch.Generator(device).manual_seed(seed)
    left, right = (
        torch.randn(each, generator=generator, device=device) for each in ((shape[0], p), (p, shape[1]))
    )
    sizes = torch.arange(1, p + 1, dtype=torch.float32, device=device).rsqrt()
    weight: torch.Tensor = (left * sizes) @ right * (0.02 / p**0.5)
    return weight.bfloat16()


def _write_statistics(options: Options, device: torch.device) -> Path:
    """Write Gram matrices of the inputs of the first block, whose other blocks stay uncalibrated."""
    tensors = {}
    for seed, (name, (_, columns)) in enumerate(_weights(options, 0)):
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.randn(2 * columns, columns, generator=generator, device=device)
        x *= torch.linspace(1, 0.2, columns, device=device)
        tensors[f"{name}.gram"] = (x.mT @ x).cpu()
    path = options.place / "statistics.safetensors"
    save_file(tensors, path)
    return path
