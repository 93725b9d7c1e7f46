"""Many small layers, as in a mixture of experts: the time of a plan, and what of a job is bookkeeping."""

import json
import time
from array import array

import torch
from safetensors.torch import save_file

from benchmarks.loops import pipeline
from benchmarks.options import Options
from benchmarks.table import show
from schemas.format.files import CheckpointFiles
from schemas.format.header import NewTensor, build_header, parse_header
from schemas.planning.budget import check_budget, resolve_ranks
from schemas.planning.documents import plan_document
from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec
from schemas.spectrum import Spectrum

EXPERTS = 10_000
PLANNED = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
# Of a job: more experts of smaller weights, or fewer of larger ones.
JOBS = ((2000, 128), (200, 512), (20, 1408))
SIDE_BY_SIDE = 200


def ask(options: Options) -> None:
    """Plan 10,000 experts by three rank rules, and compress some of three sizes."""
    files = _checkpoint(max(1, round(EXPERTS * options.scale)))
    rules = ({"ratio": 0.5}, {"budget": 0.5}, {"budget_bytes": _bytes(files) * 6 // 10})
    rows = [_plan(files, CompressionSpec.model_validate({"rank": rule})) for rule in rules]
    show(
        f"Seconds of the processor for a plan of {len(files.tensors)} layers", ("rank", "plan", "JSON"), rows
    )
    jobs = [_job(options, max(2, round(count * options.scale)), side) for count, side in JOBS]
    header = ("layers", "seconds", "on the layers", "else", "share")
    show(f"Seconds of a job on {options.threads} threads", header, jobs)


def _checkpoint(experts: int) -> CheckpointFiles:
    tensors = [
        NewTensor(f"model.layers.{number // SIDE_BY_SIDE}.mlp.experts.{number}.{name}.weight", "BF16", shape)
        for number in range(experts)
        for name, shape in PLANNED.items()
    ]
    text = build_header(tensors, {"format": "pt"})
    header = parse_header(text, file_bytes=8 + len(text) + sum(tensor.nbytes for tensor in tensors))
    return CheckpointFiles({"model.safetensors": header})


def _bytes(files: CheckpointFiles) -> int:
    return sum(tensor.nbytes for tensor in files.tensors)


def _plan(files: CheckpointFiles, spec: CompressionSpec) -> tuple[str, ...]:
    spectra = {
        tensor.name: [_spectrum(number, min(tensor.shape))] for number, tensor in enumerate(files.tensors)
    }
    begun = time.process_time()
    plan = make_plan(files.tensors, spec, factored=files.factored, aliases=files.aliases)
    check_budget(plan, spec, files)
    plan = resolve_ranks(plan, spec, files, spectra)
    planned = time.process_time()
    plan_document("experts", plan).model_dump_json()
    written = time.process_time()
    return json.dumps(spec.document()["rank"]), f"{planned - begun:.1f}", f"{written - planned:.1f}"


def _spectrum(number: int, count: int) -> Spectrum:
    exponent = 0.3 + number % 101 / 100
    return Spectrum(array("d", [(i + 1) ** -exponent for i in range(count)]), 0, 1e-7)


def _job(options: Options, count: int, side: int) -> tuple[str, ...]:
    torch.manual_seed(0)
    weights = {f"experts.{number}.up_proj.weight": torch.randn(side, side) for number in range(count)}
    source = options.place / "experts.safetensors"
    save_file(weights, source, metadata={"format": "pt"})
    spec = CompressionSpec.model_validate({"rank": {"ratio": 0.5}})
    phases = pipeline(source, options.place / "experts", spec, threads=options.threads)
    rest = max(0.0, phases.total - phases.factor)
    return (
        f"{count} of {side} x {side}",
        f"{phases.total:.2f}",
        f"{phases.factor:.2f}",
        f"{rest:.2f}",
        f"{rest / phases.total:.1%}",
    )
