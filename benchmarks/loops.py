"""Two things to compare a job with, run in another process: a bare loop, and the pipeline alone."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from schemas.format.files import CheckpointFiles, open_checkpoint
from schemas.job import Progress
from schemas.planning.planner import make_plan
from schemas.planning.references import NO_REFERENCES, References
from schemas.spec import CompressionSpec
from worker.lowrank import Factored, FactorRequest, SVDMethod, factor
from worker.pipeline import CompressionRequest, compress

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Phases:
    """The seconds that each phase of the pipeline took."""

    total: float
    plan: float
    layers: float  # reading, factoring and spooling, which overlap
    output: float
    factor: float  # summed over the layers; more than `layers` where two are factored at a time


def bare_loop(source: Path, target: Path, spec: CompressionSpec, *, threads: int) -> float:
    """Read each weight, factor it, and write all factors at the end; nothing else."""
    torch.set_num_threads(threads)
    checkpoint = open_checkpoint(source)
    files = {
        tensor.name: checkpoint.path(name)
        for name, header in checkpoint.headers.items()
        for tensor in header.tensors
    }
    layers = [layer for layer in make_plan(checkpoint.tensors, spec).layers if layer.reason is None]
    target.mkdir()
    begun = time.perf_counter()
    factors: dict[str, torch.Tensor] = {}
    for layer in layers:
        with safe_open(files[layer.tensor], "pt") as reader:
            weight = reader.get_tensor(layer.tensor)
        assert isinstance(layer.rank, int)
        request = FactorRequest(
            method=SVDMethod(), rank=layer.rank, max_rank=layer.break_even_rank, dtype=weight.dtype
        )
        done = factor(weight, request)
        assert isinstance(done, Factored)
        factors |= zip((spec.name for spec in layer.stored_tensors(done.rank)), done.factors, strict=True)
    save_file(factors, target / "factors.safetensors")
    spent_s = time.perf_counter() - begun
    shutil.rmtree(target)
    return spent_s


def pipeline(
    source: Path,
    target: Path,
    spec: CompressionSpec,
    *,
    threads: int,
    device: torch.device = CPU,
    references: References[CheckpointFiles] = NO_REFERENCES,
) -> Phases:
    """Run the worker's pipeline: spool, output with untouched tensors and digests, fsync, report."""
    torch.set_num_threads(threads)
    marks: list[tuple[str | None, float]] = []

    def observe(progress: Progress) -> None:
        marks.append((progress.layer, time.perf_counter()))

    target.mkdir()
    begun = time.perf_counter()
    request = CompressionRequest(
        open_checkpoint(source),
        (),
        spec,
        spool_dir=target / "work",
        result_dir=target / "done",
        references=references,
        just_hashed=True,
    )
    report = compress(request, device=device, observe=observe)
    ended = time.perf_counter()
    shutil.rmtree(target)
    # Before the first layer and after the last one, marks name none.
    of_layers = [number for number, (layer, _) in enumerate(marks) if layer is not None]
    planned, finished = marks[of_layers[0]][1], marks[of_layers[-1] + 1][1]
    return Phases(
        total=ended - begun,
        plan=planned - begun,
        layers=finished - planned,
        output=ended - finished,
        factor=sum(layer.seconds for layer in report.layers),
    )
