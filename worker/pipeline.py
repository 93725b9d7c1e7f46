"""Compress one checkpoint, without Celery or HTTP: plan, factor, write the output and the report."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from schemas.checkpoint import FileInfo
from schemas.format.files import CheckpointFiles
from schemas.planning.budget import shares_budget
from schemas.planning.references import NO_REFERENCES, References
from schemas.report import REPORT_NAME, Report
from schemas.spec import CompressionSpec
from state.cache.store import DecompositionCache
from state.files import write_atomic
from worker.adapter import without_config, write_adapter
from worker.budget import finish_within_budget
from worker.calibration import check_statistics
from worker.checkpoint.reader import FileState
from worker.checkpoint.spool import LayerSpool
from worker.companions import check_config, write_companions
from worker.context import JobContext, TensorReaders
from worker.factor_pass import finish_layers
from worker.fingerprint import work_fingerprint
from worker.input_check import check_input
from worker.layer import LayerOutcome
from worker.layer_cache import LayerCache, needed_bytes
from worker.left_out import count_left_out
from worker.misshapen import keep_misshapen
from worker.output import write_output
from worker.progress import Observer, ProgressTracker
from worker.report import ReportedCheckpoint, check_outcomes, make_report
from worker.resized_adapter import check_resizable, is_resized, write_resized
from worker.tied import keep_tied
from worker.work_plan import WorkPlan, plan_work


@dataclass(frozen=True, slots=True)
class CompressionRequest:
    """One compression: the input, the spec, and folders for finished layers and results.

    `references` are the other checkpoints that the spec names. `input_files` and `reference_files` hold sizes
    and digests from when the files were stored.
    `decompositions` is the cache that jobs share, or None. `just_hashed`: the digests need no check.
    """

    checkpoint: CheckpointFiles
    input_files: tuple[FileInfo, ...]
    spec: CompressionSpec
    spool_dir: Path
    result_dir: Path
    job_id: str | None = None
    decompositions: DecompositionCache | None = None
    references: References[CheckpointFiles] = NO_REFERENCES
    reference_files: References[tuple[FileInfo, ...]] = NO_REFERENCES
    just_hashed: bool = False


def compress(request: CompressionRequest, *, device: torch.device, observe: Observer) -> Report:
    """Compress a checkpoint into `result_dir`: weights, companions and report, under the names of the input.

    A factored model whose config.json is among the companions has its weights under another name.

    Parameters
    ----------
    request
        The input, the spec and the folders; layers that its spool has already are not computed again.
    device
        Where the numerics run.
    observe
        Called with the progress before each layer and each tensor that is written; an exception from it
        stops the work.

    Raises
    ------
    CheckpointError
        If an input file is malformed; with fault ``file-changed``, if it is not what was stored.
    MisfitError
        If the calibration or the base does not fit the checkpoint.
    SpecError
        If the checkpoint cannot meet the spec.
    OSError
        If a disk fails or is full.
    """
    begun = time.perf_counter()
    check_config(request.checkpoint)
    work = plan_work(request.checkpoint, request.spec, request.references)
    if is_resized(work):
        check_resizable(request.checkpoint)
    fingerprint = work_fingerprint(work, request.spec, request.input_files, request.reference_files)
    with (
        LayerSpool(request.spool_dir / fingerprint) as spool,
        TensorReaders(_input_states(request, work, spool, observe)) as readers,
    ):
        begun_work = ProgressTracker(work.tasks, observe, kept=spool.numbers)
        work = keep_tied(work, readers, check_canceled=begun_work.between_layers)
        work = keep_misshapen(work, readers)
        progress = ProgressTracker(work.tasks, observe, kept=spool.numbers)
        cache = _layer_cache(request, work, device)
        scarce = check_statistics(work.tasks, readers, device=device, check_canceled=progress.between_layers)
        work = replace(work, warnings=(*work.warnings, *scarce))
        context = JobContext(readers, spool, cache, progress, request.spec.seed, device)
        work, outcomes = _finish(work, request.spec, context)
        progress.between_layers()
        warnings: tuple[str, ...] = ()
        if work.adapter:
            outcomes, warnings = count_left_out(
                work, outcomes, readers, check_canceled=progress.between_layers
            )
        write = write_adapter if work.adapter else write_resized if is_resized(work) else write_output
        output, output_files = write(work, outcomes, context, request.result_dir)
    check_outcomes(work, outcomes)
    report = make_report(
        replace(work, warnings=(*work.warnings, *warnings)),
        request.spec,
        outcomes,
        before=ReportedCheckpoint(request.checkpoint, request.input_files, request.reference_files),
        after=ReportedCheckpoint(output, output_files),
        job_id=request.job_id,
        device=device,
        seconds=time.perf_counter() - begun,
    )
    companions = without_config(request.checkpoint) if work.adapter else request.checkpoint
    report = write_companions(companions, request.input_files, output, report, request.result_dir)
    write_atomic(request.result_dir / REPORT_NAME, report.model_dump_json(indent=1).encode() + b"\n")
    return report


def _input_states(
    request: CompressionRequest, work: WorkPlan, spool: LayerSpool, observe: Observer
) -> Mapping[Path, FileState]:
    if request.just_hashed:
        return {}
    inputs = [(request.checkpoint, request.input_files)]
    for (_, checkpoint), (_, files) in zip(
        request.references.given(), request.reference_files.given(), strict=True
    ):
        inputs.append((checkpoint, files))
    progress = ProgressTracker(work.tasks, observe, kept=spool.numbers)
    return check_input(inputs, check_canceled=progress.between_layers)


def _layer_cache(request: CompressionRequest, work: WorkPlan, device: torch.device) -> LayerCache | None:
    """Return the cache for the decompositions of this job, or None.

    The shared cache is used only if it can hold all of them at once; otherwise they would evict each other.
    Layers that share a budget then use a private cache next to the spool, since they need two passes.
    """
    cache = request.decompositions
    if cache is None or not cache.could_hold(needed_bytes(work.tasks)):
        if not any(shares_budget(layer) for layer in work.layers):
            return None
        request.spool_dir.mkdir(exist_ok=True)
        folder = request.spool_dir / "decompositions"
        cache = DecompositionCache(folder, folder, limit_bytes=None)
    return LayerCache.of(cache, work, request.input_files, request.reference_files, device)


def _finish(
    work: WorkPlan, spec: CompressionSpec, context: JobContext
) -> tuple[WorkPlan, tuple[LayerOutcome, ...]]:
    if any(shares_budget(layer) for layer in work.layers):
        return finish_within_budget(work, spec, context)
    outcomes = finish_layers(work.tasks, context)
    return work, tuple(outcomes[task.number] for task in work.tasks)
