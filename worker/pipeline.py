"""The whole of a compression, without Celery or HTTP: read, factor, write, report."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from schemas.checkpoint import FileInfo
from schemas.format.files import CheckpointFiles
from schemas.planning.budget import shares_budget
from schemas.report import REPORT_NAME, Report
from schemas.spec import CompressionSpec
from state.cache import DecompositionCache
from state.files import write_atomic
from worker.budget import finish_within_budget
from worker.checkpoint.spool import LayerSpool
from worker.context import JobContext, TensorReaders, check_grams
from worker.layer import LayerOutcome
from worker.layer_cache import LayerCache, needed_bytes
from worker.layers import finish_layers
from worker.output import write_output
from worker.progress import Observer, ProgressTracker
from worker.report import Side, make_report
from worker.work_plan import WorkPlan, plan_work


@dataclass(frozen=True, slots=True)
class CompressionRequest:
    """One compression: what to read, what to do, and where the finished layers and the results go.

    `input_files` and `calibration_files` are sizes and digests as they were taken when the files were stored.
    `decompositions` is what other jobs left and find, or None.
    """

    checkpoint: CheckpointFiles
    input_files: tuple[FileInfo, ...]
    spec: CompressionSpec
    spool_dir: Path
    result_dir: Path
    job_id: str | None = None
    decompositions: DecompositionCache | None = None
    calibration: CheckpointFiles | None = None
    calibration_files: tuple[FileInfo, ...] = ()


def compress(request: CompressionRequest, *, device: torch.device, observe: Observer) -> Report:
    """Compress a checkpoint into `result_dir`: its files under their own names, the index and the report.

    Parameters
    ----------
    request
        What to do; layers found finished in its spool are not done again.
    device
        Where the numerics run.
    observe
        Told of the progress before each layer and each tensor written; what it raises stops the work.

    Raises
    ------
    CheckpointError
        If an input file is not what its header says, or the calibration does not fit (CalibrationError).
    OSError
        If a disk fails or fills.
    """
    begun = time.perf_counter()
    work = plan_work(request.checkpoint, request.spec, request.calibration)
    spool = LayerSpool(request.spool_dir)
    progress = ProgressTracker(work.tasks, observe)
    cache = _layer_cache(request, work, device)
    with TensorReaders() as readers:
        check_grams(work.tasks, readers, device=device, check_cancelled=progress.end_all)
        context = JobContext(readers, spool, cache, progress, request.spec.seed, device)
        work, outcomes = _finish(work, request.spec, context)
    progress.end_all()
    output, output_files = write_output(
        work, outcomes, spool, request.result_dir, check_cancelled=progress.end_all
    )
    calibration = request.calibration_files if request.calibration else None
    report = make_report(
        work,
        request.spec,
        outcomes,
        before=Side(request.checkpoint, request.input_files, calibration),
        after=Side(output, output_files),
        job_id=request.job_id,
        device=device,
        seconds=time.perf_counter() - begun,
    )
    write_atomic(request.result_dir / REPORT_NAME, report.model_dump_json(indent=1).encode() + b"\n")
    return report


def _layer_cache(request: CompressionRequest, work: WorkPlan, device: torch.device) -> LayerCache | None:
    """Return where decompositions are found and kept.

    Where the cache could not keep all of them at once, a few would only drive each other out. Layers that
    share a budget are then kept with the finished ones; others are not.
    """
    store = request.decompositions
    if store is None or not store.could_hold(needed_bytes(work.tasks)):
        if not any(shares_budget(layer) for layer in work.layers):
            return None
        folder = request.spool_dir / "decompositions"
        store = DecompositionCache(folder, folder, limit_bytes=None)
    return LayerCache.of(store, work, request.input_files, request.calibration_files, device)


def _finish(
    work: WorkPlan, spec: CompressionSpec, context: JobContext
) -> tuple[WorkPlan, tuple[LayerOutcome, ...]]:
    if any(shares_budget(layer) for layer in work.layers):
        return finish_within_budget(work, spec, context)
    outcomes = finish_layers(work.tasks, context)
    return work, tuple(outcomes[task.number] for task in work.tasks)
