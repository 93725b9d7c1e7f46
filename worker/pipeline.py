"""The whole of a compression, without Celery or HTTP: read, factor, write, report."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import torch
from pydantic import ValidationError

from schemas.compression import CompressionSpec
from schemas.report import REPORT_NAME, FileReport, Report
from worker.checkpoint.part import PartFile
from worker.checkpoint.reader import CheckpointReader
from worker.checkpoint.spool import LayerSpool
from worker.device import threads_for
from worker.layer import LayerOutcome, factor_layer, kept_outcome
from worker.output import write_output
from worker.plan import InputCheckpoint, LayerTask, WorkPlan, plan_work
from worker.progress import Meter, Observer
from worker.report import FileSet, make_report


@dataclass(frozen=True, slots=True)
class Request:
    """One compression: what to read, what to do, and where the finished layers and the results go.

    `input_files` are the input's sizes and digests as they were taken when it was stored.
    """

    checkpoint: InputCheckpoint
    input_files: tuple[FileReport, ...]
    spec: CompressionSpec
    spool_dir: Path
    result_dir: Path
    job_id: str | None = None


def compress(request: Request, *, device: torch.device, observe: Observer) -> Report:
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
        If an input file is not what its header says.
    OSError
        If a disk fails or fills.
    """
    begun = time.perf_counter()
    work = plan_work(request.checkpoint, request.spec)
    spool = LayerSpool(request.spool_dir)
    outcomes, meter = _finish_layers(work, spool, seed=request.spec.seed, device=device, observe=observe)
    output = write_output(work, outcomes, spool, request.result_dir, go_on=meter.end_all)
    report = make_report(
        work,
        request.spec,
        outcomes,
        before=FileSet(request.input_files, request.checkpoint.tensors),
        after=FileSet(output.files, output.tensors),
        job_id=request.job_id,
        device=device,
        seconds=time.perf_counter() - begun,
    )
    with PartFile(request.result_dir / REPORT_NAME) as part:
        part.write(report.model_dump_json(indent=1).encode() + b"\n")
    return report


def _finish_layers(
    work: WorkPlan, spool: LayerSpool, *, seed: int, device: torch.device, observe: Observer
) -> tuple[tuple[LayerOutcome, ...], Meter]:
    """Take each layer from the spool or do it; the next weight is read and the last one written meanwhile."""
    outcomes = {task.number: outcome for task in work.tasks if (outcome := _known(task, spool))}
    meter = Meter(work.tasks, observe, finished=outcomes.keys())
    todo = [task for task in work.tasks if task.number not in outcomes]
    with _ReadAhead(todo) as weights, ThreadPoolExecutor(1, "write") as writing:
        written: Future[None] | None = None
        for task in todo:
            meter.begin(task)
            weight = weights.take(task)
            with threads_for(task.cost):
                outcome, factors = factor_layer(task, weight, seed=seed, device=device)
            del weight
            if written is not None:
                written.result()
            written = writing.submit(spool.put, task.number, outcome.model_dump_json(), factors)
            outcomes[task.number] = outcome
            meter.end(task)
        if written is not None:
            written.result()
    meter.end_all()
    return tuple(outcomes[task.number] for task in work.tasks), meter


def _known(task: LayerTask, spool: LayerSpool) -> LayerOutcome | None:
    if task.layer.reason is not None:
        return kept_outcome(task, task.layer.reason)
    spooled = spool.get(task.number)
    try:
        return LayerOutcome.model_validate_json(spooled.outcome_json) if spooled else None
    except ValidationError:
        # Another release wrote it: the layer is done again.
        return None


class _ReadAhead:
    """Weights in the order of work, the next one always being read while one is worked on."""

    def __init__(self, tasks: Sequence[LayerTask]) -> None:
        self._tasks = iter(tasks)
        self._open = ExitStack()
        self._pool = ThreadPoolExecutor(1, "read")
        self._reader = cache(self._open_reader)
        self._next = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # First the reading, then what it reads from.
        self._pool.shutdown(cancel_futures=True)
        self._open.close()

    def take(self, task: LayerTask) -> torch.Tensor:
        current, self._next = self._next, self._start()
        assert current is not None, task.layer.name
        return current.result()

    def _start(self) -> Future[torch.Tensor] | None:
        task = next(self._tasks, None)
        return self._pool.submit(self._read, task) if task else None

    def _read(self, task: LayerTask) -> torch.Tensor:
        return self._reader(task.source.path).read(task.tensor.name)

    def _open_reader(self, path: Path) -> CheckpointReader:
        return self._open.enter_context(CheckpointReader(path))
